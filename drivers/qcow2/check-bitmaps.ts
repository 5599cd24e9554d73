/** References of persistent bitmaps to host clusters (specification: "Bitmaps extension", "Bitmap directory", "Bitmap table"). */
import { readU64BE, viewOf } from '../../src/base/byte-order.ts';
import { alignUp } from '../../src/base/range.ts';
import { type CheckState, hex, type TablePlace } from './check-state.ts';

/** The bitmaps extension of a header, when its autoclear bit says that it is valid. */
export interface BitmapDirectory {
  readonly place: TablePlace;
  readonly bitmaps: number;
}

/** Limits of the format, as QEMU enforces them. */
const MAX_DIRECTORY_BYTES = 65535 * 1024;
const MAX_TABLE_BYTES = 0x800_0000 * 8;
const ENTRY_BYTES = 24;
const PIECE_BYTES = 64 << 10;
const TWO_32 = 0x1_0000_0000;
/** Bits of a bitmap table entry: 0 "all ones", 9-55 the offset, the rest reserved. */
const HIGH_RESERVED = 0xff00_0000;
const LOW_RESERVED = 0x1fe;
const ALL_ONES = 1;

/** Counts the directory, each bitmap's table and its clusters. Errors: EIO. */
export const referenceBitmaps = async (
  state: CheckState,
  directory: BitmapDirectory,
): Promise<void> => {
  const { place } = directory;
  state.reference(place.offset, place.lengthBytes, 1, () => 'the bitmap directory');
  if (place.lengthBytes > MAX_DIRECTORY_BYTES) {
    state.corruption(`the bitmap directory is too large (${place.lengthBytes} bytes)`);
    return;
  }
  const bytes = new Uint8Array(place.lengthBytes);
  if (!(await state.readTable(place.offset, bytes))) bytes.fill(0);
  const view = viewOf(bytes);
  let at = 0;
  for (let index = 0; index < directory.bitmaps; index++) {
    if (at + ENTRY_BYTES > bytes.length) {
      state.corruption(`the bitmap directory ends before bitmap ${index}`);
      return;
    }
    const offset = readU64BE(view, at);
    const table = { offset, lengthBytes: view.getUint32(at + 8) * 8 };
    await referenceBitmap(state, table, `bitmap ${index}`);
    const nameBytes = view.getUint16(at + 18);
    at = alignUp(at + ENTRY_BYTES + view.getUint32(at + 20) + nameBytes, 8);
  }
};

const referenceBitmap = async (
  state: CheckState,
  table: TablePlace,
  what: string,
): Promise<void> => {
  // NaN (an offset past 2^53) is not aligned either.
  if (!(table.offset % state.shape.clusterBytes === 0) || table.lengthBytes > MAX_TABLE_BYTES) {
    state.corruption(
      `${what}: its table (offset ${hex(table.offset)}, ${table.lengthBytes} bytes) cannot be`,
    );
    return;
  }
  state.reference(table.offset, table.lengthBytes, 1, () => `the table of ${what}`);
  const piece = new Uint8Array(Math.min(PIECE_BYTES, table.lengthBytes));
  for (let done = 0; done < table.lengthBytes; done += piece.length) {
    const part = piece.subarray(0, Math.min(piece.length, table.lengthBytes - done));
    if (!(await state.readTable(table.offset + done, part))) continue;
    const view = viewOf(part);
    for (let at = 0; at < part.length; at += 8) {
      referenceEntry(state, view.getUint32(at), view.getUint32(at + 4), what);
    }
  }
};

const referenceEntry = (state: CheckState, high: number, low: number, what: string): void => {
  const { clusterBytes } = state.shape;
  const lowOffset = (low & ~0x1ff) >>> 0;
  const offset = (high & 0x00ff_ffff) * TWO_32 + lowOffset;
  const isWrong =
    (high & HIGH_RESERVED) !== 0 ||
    (low & LOW_RESERVED) !== 0 ||
    (offset !== 0 && (low & ALL_ONES) !== 0) ||
    lowOffset % clusterBytes !== 0;
  if (isWrong) {
    const entry = `${hex(high)}${low.toString(16).padStart(8, '0')}`;
    state.corruption(`${what}: a table entry cannot be (${entry})`);
    return;
  }
  if (offset !== 0) state.reference(offset, clusterBytes, 1, () => what);
};
