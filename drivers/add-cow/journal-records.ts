/**
 * Records of the restart journal: clusters whose bits were set, and what the image was then, so that a new engine can
 * see when another program has changed it.
 *
 *     BITS    kind u8 (0x41), CRC-32 of the header's fields u32, bytes of the image file f64, first cluster f64, clusters f64
 *     HEADER  kind u8 (0x48), as header-changes.ts has it: bytes of the header that are owed
 */
import { crc32 } from 'node:zlib';
import { viewOf } from '../../src/base/byte-order.ts';
import { decodeOwed, encodeOwed, type OwedHeader } from '../../src/block/header-changes.ts';

export interface BitsSet {
  readonly kind: 'bits';
  /** See `stampOf`. */
  readonly stamp: number;
  readonly imageBytes: number;
  readonly first: number;
  readonly clusters: number;
}

export type JournalRecord = BitsSet | { readonly kind: 'header'; readonly owed: OwedHeader };

/** No other format's. */
const KIND = { bits: 0x41, header: 0x48 } as const;
const BITS_BYTES = 29;

/** Of a header: another one, another image. */
export const stampOf = (fields: Uint8Array): number => crc32(fields);

export const encodeRecord = (record: JournalRecord): Uint8Array => {
  if (record.kind === 'header')
    return Buffer.concat([Uint8Array.of(KIND.header), encodeOwed(record.owed)]);
  const { stamp, imageBytes, first, clusters } = record;
  const bytes = new Uint8Array(BITS_BYTES);
  const view = viewOf(bytes);
  view.setUint8(0, KIND.bits);
  view.setUint32(1, stamp);
  view.setFloat64(5, imageBytes);
  view.setFloat64(13, first);
  view.setFloat64(21, clusters);
  return bytes;
};

/** Null for a record that this driver did not write: an image of another format had the file's inode. */
export const decodeRecord = (record: Uint8Array): JournalRecord | null => {
  if (record[0] === KIND.header) {
    const found = decodeOwed(record.subarray(1));
    return found?.lengthBytes === record.length - 1 ? { kind: 'header', owed: found.owed } : null;
  }
  if (record.length !== BITS_BYTES || record[0] !== KIND.bits) return null;
  const view = viewOf(record);
  return {
    kind: 'bits',
    stamp: view.getUint32(1),
    imageBytes: view.getFloat64(5),
    first: view.getFloat64(13),
    clusters: view.getFloat64(21),
  };
};
