/**
 * The shape of Zstandard frames (RFC 8878, "Frames", "Blocks"), told without unpacking: where each ends, and how many bytes
 * it says it holds. A compressed cluster is followed by padding of which only the frames know, and the library takes
 * sizes as it is told: everything is checked here first.
 */
import { viewOf } from '../../src/base/byte-order.ts';

export interface Frame {
  /** From its first byte to the one after its last. */
  readonly start: number;
  readonly end: number;
  /** Bytes that it unpacks to, as it says; null when it does not say. */
  readonly contentBytes: number | null;
}

const MAGIC = 0xfd2f_b528;
/** Its lowest four bits are anything. */
const SKIPPABLE_MAGIC = 0x184d_2a50;
const SKIPPABLE_HEADER_BYTES = 8;
/** Of a frame: magic, descriptor, one more field, one block. */
const SHORTEST_BYTES = 9;
/** Of a block's header. */
const BLOCK_HEADER_BYTES = 3;
const BLOCK_RLE = 1;
const BLOCK_RESERVED = 3;
const CHECKSUM_BYTES = 4;
const DICTIONARY_BYTES = [0, 1, 2, 4] as const;

/**
 * The first frame at `from` or after the skippable frames there. Never reads past `packed`. In words, what is wrong:
 * "compressed cluster …".
 */
export const nextFrame = (packed: Uint8Array, from: number): Frame | string => {
  const view = viewOf(packed);
  for (let start = from; start + SHORTEST_BYTES <= packed.length; ) {
    const magic = view.getUint32(start, true);
    if ((magic & 0xffff_fff0) >>> 0 === SKIPPABLE_MAGIC) {
      start += SKIPPABLE_HEADER_BYTES + view.getUint32(start + 4, true);
      continue;
    }
    if (magic !== MAGIC) return `has no Zstandard frame at byte ${start}`;
    return walkFrame(view, start) ?? `has a broken Zstandard frame at byte ${start}`;
  }
  return 'breaks off';
};

/** Null for one that is broken or reaches past the end. */
const walkFrame = (view: DataView, start: number): Frame | null => {
  const limit = view.byteLength;
  const descriptor = view.getUint8(start + 4);
  const isSingleSegment = (descriptor & 0x20) !== 0;
  const checksumBytes = (descriptor & 0x04) !== 0 ? CHECKSUM_BYTES : 0;
  const isReserved = (descriptor & 0x08) !== 0;
  const fieldBytes = contentFieldBytes(descriptor >>> 6, isSingleSegment);
  const fieldAt = start + 5 + (isSingleSegment ? 0 : 1) + (DICTIONARY_BYTES[descriptor & 3] ?? 0);
  if (isReserved || fieldAt + fieldBytes > limit) return null;
  const contentBytes = readContentBytes(view, fieldAt, fieldBytes);
  for (let at = fieldAt + fieldBytes; at + BLOCK_HEADER_BYTES <= limit; ) {
    const header = view.getUint16(at, true) + view.getUint8(at + 2) * 0x1_0000;
    const type = (header >>> 1) & 3;
    if (type === BLOCK_RESERVED) return null;
    at += BLOCK_HEADER_BYTES + (type === BLOCK_RLE ? 1 : header >>> 3);
    if ((header & 1) === 0) continue;
    const end = at + checksumBytes;
    return end <= limit ? { start, end, contentBytes } : null;
  }
  return null;
};

const contentFieldBytes = (flag: number, isSingleSegment: boolean): number => {
  if (flag === 0) return isSingleSegment ? 1 : 0;
  return 2 ** flag;
};

const readContentBytes = (view: DataView, at: number, fieldBytes: number): number | null => {
  switch (fieldBytes) {
    case 0:
      return null;
    case 1:
      return view.getUint8(at);
    case 2:
      return view.getUint16(at, true) + 256;
    case 4:
      return view.getUint32(at, true);
    default:
      return view.getUint32(at, true) + view.getUint32(at + 4, true) * 2 ** 32;
  }
};
