/**
 * The bitmaps extension and the bitmap directory (specification: "Bitmaps extension", "Bitmap directory"): read, and
 * checked field by field as QEMU does; and written.
 *
 *     extension, 24 bytes          bitmaps u32, 0 u32, directory size u64, directory offset u64
 *     directory entry              table offset u64, table entries u32, flags u32, type u8, granularity bits u8,
 *                                  name bytes u16, extra bytes u32, extra data, name, padding to 8 bytes
 */
import { type BlockError, invalidImage } from '../../src/base/block-error.ts';
import { readU64BE, viewOf, writeU64BE } from '../../src/base/byte-order.ts';
import { alignUp, divideUp, isAligned } from '../../src/base/range.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { Node } from '../../src/block/node.ts';
import { hex } from './entry.ts';
import type { Qcow2Header } from './header.ts';
import { AUTOCLEAR, EXTENSION } from './layout.ts';

/** Limits of the format, as QEMU enforces them. */
export const MAX_BITMAPS = 65_535;
export const MAX_DIRECTORY_BYTES = 65_535 * 1024;
export const MAX_TABLE_ENTRIES = 0x800_0000;
/** Of the bits of one bitmap. */
export const MAX_BITMAP_BYTES = 0x2000_0000;
export const MAX_NAME_BYTES = 1023;
export const MIN_GRANULARITY_BITS = 9;
export const MAX_GRANULARITY_BITS = 31;

const EXTENSION_BYTES = 24;
const ENTRY_FIXED_BYTES = 24;
/** The shortest entry: a name of one byte, padded. */
const MIN_ENTRY_BYTES = 32;
/** Of the flags' word within an entry. It never lies in two sectors: entries are multiples of 8. */
export const ENTRY_FLAGS_AT = 12;
export const FLAG = { inUse: 1, auto: 2, extraDataCompatible: 4 } as const;
const KNOWN_FLAGS = FLAG.inUse | FLAG.auto | FLAG.extraDataCompatible;
const DIRTY_TRACKING = 1;

export interface BitmapExtension {
  readonly bitmaps: number;
  readonly directoryBytes: number;
  readonly directoryOffset: number;
}

/** One entry of the directory. */
export interface StoredBitmap {
  readonly name: string;
  /** As it is stored: it need not be UTF-8. */
  readonly nameBytes: Uint8Array;
  readonly tableOffset: number;
  readonly tableEntries: number;
  readonly flags: number;
  readonly granularityBits: number;
  readonly extra: Uint8Array;
}

/**
 * The extension, when the autoclear bit says that it is valid; null without one. Errors: kind invalid-image naming the
 * field.
 */
export const bitmapExtensionOf = (
  header: Qcow2Header,
  fileBytes: number,
  path: string,
): BitmapExtension | null => {
  const content = header.extensions.find((e) => e.type === EXTENSION.bitmaps)?.content;
  if (content === undefined || (header.autoclear & AUTOCLEAR.bitmaps) === 0) return null;
  const bad = (field: string, value: number | string, why: string): BlockError =>
    invalidImage(`bitmaps extension: ${field} is ${value}, ${why}`, { path });
  if (content.length !== EXTENSION_BYTES)
    throw bad('length', content.length, `not ${EXTENSION_BYTES}`);
  const view = viewOf(content);
  const bitmaps = view.getUint32(0);
  const directoryBytes = readU64BE(view, 8);
  const directoryOffset = readU64BE(view, 16);
  if (bitmaps === 0 || bitmaps > MAX_BITMAPS)
    throw bad('nb_bitmaps', bitmaps, `not 1 to ${MAX_BITMAPS}`);
  if (view.getUint32(4) !== 0) throw bad('reserved', hex(view.getUint32(4)), 'not 0');
  if (!(directoryBytes <= MAX_DIRECTORY_BYTES) || directoryBytes < bitmaps * MIN_ENTRY_BYTES) {
    const why = `not ${MIN_ENTRY_BYTES} bytes for each of ${bitmaps} bitmaps to ${MAX_DIRECTORY_BYTES}`;
    throw bad('bitmap_directory_size', directoryBytes, why);
  }
  const where = Number.isNaN(directoryOffset) ? 'past 2^53' : hex(directoryOffset);
  if (!isAligned(directoryOffset, header.clusterBytes) || directoryOffset === 0)
    throw bad(
      'bitmap_directory_offset',
      where,
      'not a multiple of the cluster size past the header',
    );
  if (!(directoryOffset + directoryBytes <= alignUp(fileBytes, header.clusterBytes)))
    throw bad(
      'bitmap_directory_offset',
      where,
      `the directory of ${directoryBytes} bytes there reaches past the end of the file (${fileBytes} bytes)`,
    );
  return { bitmaps, directoryBytes, directoryOffset };
};

/** Errors: kind invalid-image naming bitmap, field and value; EIO. */
export const readBitmapDirectory = async (
  file: Node,
  header: Qcow2Header,
  path: string,
): Promise<readonly StoredBitmap[]> => {
  const extension = bitmapExtensionOf(header, file.lengthBytes, path);
  if (extension === null) return [];
  const bytes = new Uint8Array(extension.directoryBytes);
  await file.readClipped(guestOffset(extension.directoryOffset), bytes);
  return parseDirectory(bytes, extension, { header, fileBytes: file.lengthBytes, path });
};

interface DirectoryContext {
  readonly header: Qcow2Header;
  readonly fileBytes: number;
  readonly path: string;
}

const parseDirectory = (
  bytes: Uint8Array,
  extension: BitmapExtension,
  context: DirectoryContext,
): StoredBitmap[] => {
  const found: StoredBitmap[] = [];
  const names = new Set<string>();
  let at = 0;
  for (let index = 0; index < extension.bitmaps; index++) {
    const offset = extension.directoryOffset + at;
    const bad = (message: string): BlockError =>
      invalidImage(`bitmap ${index} of ${extension.bitmaps}: ${message}`, {
        path: context.path,
        offset,
      });
    const { bitmap, lengthBytes } = parseEntry(bytes.subarray(at), context, bad);
    const name = Buffer.from(bitmap.nameBytes).toString('latin1');
    if (names.has(name)) throw bad(`its name '${bitmap.name}' is another's too`);
    names.add(name);
    found.push(bitmap);
    at += lengthBytes;
  }
  if (at === bytes.length) return found;
  const message = `the bitmap directory is ${bytes.length} bytes, its ${extension.bitmaps} bitmaps take ${at}`;
  throw invalidImage(message, { path: context.path, offset: extension.directoryOffset });
};

type Bad = (message: string) => BlockError;

const parseEntry = (
  bytes: Uint8Array,
  context: DirectoryContext,
  bad: Bad,
): { bitmap: StoredBitmap; lengthBytes: number } => {
  if (bytes.length < ENTRY_FIXED_BYTES)
    throw bad(`the directory ends after ${bytes.length} bytes of it`);
  const view = viewOf(bytes);
  const nameBytes = view.getUint16(18);
  const extraBytes = view.getUint32(20);
  if (nameBytes === 0 || nameBytes > MAX_NAME_BYTES)
    throw bad(`name_size is ${nameBytes}, not 1 to ${MAX_NAME_BYTES}`);
  const lengthBytes = alignUp(ENTRY_FIXED_BYTES + extraBytes + nameBytes, 8);
  if (lengthBytes > bytes.length) {
    throw bad(`it takes ${lengthBytes} bytes, of which the directory has ${bytes.length}`);
  }
  const nameAt = ENTRY_FIXED_BYTES + extraBytes;
  const name = bytes.slice(nameAt, nameAt + nameBytes);
  const bitmap: StoredBitmap = {
    name: Buffer.from(name).toString('utf8'),
    nameBytes: name,
    tableOffset: readU64BE(view, 0),
    tableEntries: view.getUint32(8),
    flags: view.getUint32(ENTRY_FLAGS_AT),
    granularityBits: view.getUint8(17),
    extra: bytes.slice(ENTRY_FIXED_BYTES, nameAt),
  };
  const type = view.getUint8(16);
  if (type !== DIRTY_TRACKING) throw bad(`type is ${type}, not 1 (dirty tracking)`);
  checkEntry(bitmap, context, bad);
  return { bitmap, lengthBytes };
};

const checkEntry = (b: StoredBitmap, context: DirectoryContext, bad: Bad): void => {
  const { header, fileBytes } = context;
  const { clusterBytes } = header;
  const tableBytes = b.tableEntries * 8;
  const where = Number.isNaN(b.tableOffset) ? 'past 2^53' : hex(b.tableOffset);
  if ((b.flags & ~KNOWN_FLAGS) !== 0) throw bad(`flags are ${hex(b.flags)}, with reserved bits`);
  if (b.granularityBits < MIN_GRANULARITY_BITS || b.granularityBits > MAX_GRANULARITY_BITS) {
    throw bad(
      `granularity_bits is ${b.granularityBits}, not ${MIN_GRANULARITY_BITS} to ${MAX_GRANULARITY_BITS}`,
    );
  }
  if (b.tableEntries === 0 || b.tableEntries > MAX_TABLE_ENTRIES)
    throw bad(`bitmap_table_size is ${b.tableEntries}, not 1 to ${MAX_TABLE_ENTRIES}`);
  if (b.tableEntries * clusterBytes > MAX_BITMAP_BYTES)
    throw bad(`bitmap_table_size is ${b.tableEntries}, for a bitmap of more than 512 MiB`);
  if (!isAligned(b.tableOffset, clusterBytes) || b.tableOffset === 0)
    throw bad(`bitmap_table_offset is ${where}, not a multiple of the cluster size`);
  if (!(b.tableOffset + tableBytes <= alignUp(fileBytes, clusterBytes)))
    throw bad(`bitmap_table_offset is ${where}: its table reaches past the end of the file`);
  if ((b.flags & FLAG.inUse) !== 0) return;
  const needed = tableEntriesFor(header.virtualSizeBytes, b.granularityBits, clusterBytes);
  if (b.tableEntries !== needed) {
    const size = header.virtualSizeBytes;
    throw bad(
      `bitmap_table_size is ${b.tableEntries}, not the ${needed} that ${size} bytes in granules of 2^${b.granularityBits} need`,
    );
  }
};

/** Entries of the table of a bitmap. */
export const tableEntriesFor = (
  lengthBytes: number,
  granularityBits: number,
  clusterBytes: number,
): number => divideUp(divideUp(lengthBytes, 2 ** granularityBits), clusterBytes * 8);

/** May be used: saved, and without extra data that has to be understood. */
export const isUsable = ({ flags, extra }: StoredBitmap): boolean =>
  (flags & FLAG.inUse) === 0 && (extra.length === 0 || (flags & FLAG.extraDataCompatible) !== 0);

export const entryBytesOf = (b: StoredBitmap): number =>
  alignUp(ENTRY_FIXED_BYTES + b.extra.length + b.nameBytes.length, 8);

export const encodeDirectory = (bitmaps: readonly StoredBitmap[]): Uint8Array => {
  const bytes = new Uint8Array(bitmaps.reduce((sum, b) => sum + entryBytesOf(b), 0));
  let at = 0;
  for (const b of bitmaps) {
    const view = viewOf(bytes.subarray(at));
    writeU64BE(view, 0, b.tableOffset);
    view.setUint32(8, b.tableEntries);
    view.setUint32(ENTRY_FLAGS_AT, b.flags);
    view.setUint8(16, DIRTY_TRACKING);
    view.setUint8(17, b.granularityBits);
    view.setUint16(18, b.nameBytes.length);
    view.setUint32(20, b.extra.length);
    bytes.set(b.extra, at + ENTRY_FIXED_BYTES);
    bytes.set(b.nameBytes, at + ENTRY_FIXED_BYTES + b.extra.length);
    at += entryBytesOf(b);
  }
  return bytes;
};

export const encodeExtension = (extension: BitmapExtension): Uint8Array => {
  const bytes = new Uint8Array(EXTENSION_BYTES);
  const view = viewOf(bytes);
  view.setUint32(0, extension.bitmaps);
  writeU64BE(view, 8, extension.directoryBytes);
  writeU64BE(view, 16, extension.directoryOffset);
  return bytes;
};

/** `bitmaps` of `qemu-img info`; in the order of the directory. */
export const describeBitmaps = (
  bitmaps: readonly StoredBitmap[],
): readonly Readonly<Record<string, unknown>>[] =>
  bitmaps.map(({ flags, name, granularityBits }) => ({
    flags: [
      ...((flags & FLAG.inUse) !== 0 ? ['in-use'] : []),
      ...((flags & FLAG.auto) !== 0 ? ['auto'] : []),
    ],
    name,
    granularity: 2 ** granularityBits,
  }));
