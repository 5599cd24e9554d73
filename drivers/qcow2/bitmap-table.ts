/**
 * A bitmap's table and its bits (specification: "Bitmap table", "Bitmap data"). An entry of the table stands for a cluster
 * of bits: all clear, all set, or stored.
 *
 *     bit 0       with offset 0: all ones
 *     bits 9-55   host offset of the cluster; 0 for none
 *     others      reserved
 */
import { BlockError, invalidImage } from '../../src/base/block-error.ts';
import { viewOf, writeU64BE } from '../../src/base/byte-order.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { DirtyBitmap } from '../../src/block/dirty-bitmap.ts';
import type { Node } from '../../src/block/node.ts';
import { MAX_BITMAP_BYTES, type StoredBitmap } from './bitmap-directory.ts';
import { entryHex } from './entry.ts';
import { ENTRY_BYTES } from './layout.ts';

/** The entry of a cluster of bits: 0 for all clear, ALL_ONES, or its host offset. */
export type BitmapTable = Float64Array;
export const ALL_ONES = 1;

const HIGH_RESERVED = 0xff00_0000;
const LOW_RESERVED = 0x1fe;

export interface BitmapFile {
  readonly file: Node;
  readonly path: string;
  readonly clusterBytes: number;
}

/** Errors: kind invalid-image naming bitmap and entry; EIO. */
export const readBitmapTable = async (
  { file, path, clusterBytes }: BitmapFile,
  bitmap: StoredBitmap,
): Promise<BitmapTable> => {
  const bytes = new Uint8Array(bitmap.tableEntries * ENTRY_BYTES);
  await file.readClipped(guestOffset(bitmap.tableOffset), bytes);
  const view = viewOf(bytes);
  const table = new Float64Array(bitmap.tableEntries);
  for (let i = 0; i < table.length; i++) {
    const high = view.getUint32(i * ENTRY_BYTES);
    const low = view.getUint32(i * ENTRY_BYTES + 4);
    const problem = entryProblem(high, low, clusterBytes, file.lengthBytes);
    if (problem !== null) {
      const message = `bitmap '${bitmap.name}': table entry ${i} is ${entryHex(high, low)}, ${problem}`;
      throw invalidImage(message, { path, offset: bitmap.tableOffset + i * ENTRY_BYTES });
    }
    table[i] = high * 2 ** 32 + low;
  }
  return table;
};

const entryProblem = (
  high: number,
  low: number,
  clusterBytes: number,
  fileBytes: number,
): string | null => {
  if ((high & HIGH_RESERVED) !== 0 || (low & LOW_RESERVED) !== 0) return 'with reserved bits';
  const offset = high * 2 ** 32 + (low - (low & 1));
  if (offset !== 0 && (low & 1) !== 0) return 'both an offset and all ones';
  if (offset % clusterBytes !== 0) return 'not a multiple of the cluster size';
  if (offset >= fileBytes) return 'past the end of the file';
  return null;
};

/** How many clusters of bits the tables name. Errors: kind unsupported when that is more than memory is spent for. */
export const refuseTooLarge = (
  tables: readonly BitmapTable[],
  { path, clusterBytes }: BitmapFile,
): void => {
  let clusters = 0;
  for (const table of tables) for (const entry of table) if (entry > ALL_ONES) clusters++;
  if (clusters * clusterBytes <= MAX_BITMAP_BYTES) return;
  const message = `its dirty bitmaps take ${clusters * clusterBytes} bytes, more than the ${MAX_BITMAP_BYTES} that are kept in memory`;
  throw new BlockError({
    kind: 'unsupported',
    message,
    hint: 'remove some of them with qemu-img bitmap --remove, or open the image read-only',
    path,
    op: 'open',
  });
};

/** Adds what the table stands for. Errors: EIO. */
export const readBits = async (
  { file, clusterBytes }: BitmapFile,
  table: BitmapTable,
  into: DirtyBitmap,
): Promise<void> => {
  const bits = new Uint8Array(clusterBytes);
  for (let i = 0; i < table.length; i++) {
    const entry = table[i] ?? 0;
    const first = i * clusterBytes * 8;
    if (entry === 0) continue;
    if (entry === ALL_ONES) into.mark(first * into.granularityBytes, bitsBytes(into, clusterBytes));
    else {
      await file.readClipped(guestOffset(entry), bits);
      into.addBits(first, bits);
    }
  }
};

/** Guest bytes of a cluster of bits. */
const bitsBytes = (bitmap: DirtyBitmap, clusterBytes: number): number =>
  clusterBytes * 8 * bitmap.granularityBytes;

export const encodeTable = (table: BitmapTable): Uint8Array => {
  const bytes = new Uint8Array(table.length * ENTRY_BYTES);
  const view = viewOf(bytes);
  for (let i = 0; i < table.length; i++) writeU64BE(view, i * ENTRY_BYTES, table[i] ?? 0);
  return bytes;
};
