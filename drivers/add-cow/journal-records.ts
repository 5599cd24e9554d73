/**
 * Records of the restart journal: clusters whose bits were set, and what the image was then, so that a new engine can
 * see when another program has changed it.
 *
 *     kind u8 (0x41), CRC-32 of the header's fields u32, bytes of the image file f64, first cluster f64, clusters f64
 */
import { crc32 } from 'node:zlib';
import { viewOf } from '../../src/base/byte-order.ts';

export interface BitsSet {
  /** See `stampOf`. */
  readonly stamp: number;
  readonly imageBytes: number;
  readonly first: number;
  readonly clusters: number;
}

/** No other format's. */
const KIND = 0x41;
const RECORD_BYTES = 29;

/** Of a header: another one, another image. */
export const stampOf = (fields: Uint8Array): number => crc32(fields);

export const encodeRecord = ({ stamp, imageBytes, first, clusters }: BitsSet): Uint8Array => {
  const bytes = new Uint8Array(RECORD_BYTES);
  const view = viewOf(bytes);
  view.setUint8(0, KIND);
  view.setUint32(1, stamp);
  view.setFloat64(5, imageBytes);
  view.setFloat64(13, first);
  view.setFloat64(21, clusters);
  return bytes;
};

/** Null for a record that this driver did not write: an image of another format had the file's inode. */
export const decodeRecord = (record: Uint8Array): BitsSet | null => {
  if (record.length !== RECORD_BYTES || record[0] !== KIND) return null;
  const view = viewOf(record);
  return {
    stamp: view.getUint32(1),
    imageBytes: view.getFloat64(5),
    first: view.getFloat64(13),
    clusters: view.getFloat64(21),
  };
};
