/**
 * Writing the header. The fields lie in the file's first sector and are written at once; a name is on disk before the
 * fields name it, and where no field names anything, so that a cut leaves the old header or the new one.
 */
import { BlockError } from '../../src/base/block-error.ts';
import { viewOf } from '../../src/base/byte-order.ts';
import type { ByteRange } from '../../src/base/range.ts';
import type { HeaderChanges } from '../../src/block/header-changes.ts';
import type { BackingLink, DataFileLink } from '../../src/block/image-description.ts';
import type { AddCowHeader } from './header.ts';
import {
  ALL_ALLOCATED,
  FIELD,
  FIELDS_BYTES,
  FORMAT_BYTES,
  headerBytesOf,
  MAGIC,
  MAX_NAME_BYTES,
} from './layout.ts';

export interface HeaderPlan {
  readonly clusterBytes: number;
  readonly backing: BackingLink | null;
  readonly image: DataFileLink;
  readonly isAllAllocated: boolean;
}

/** The fields with the names behind them, the backing file's first. Errors: EINVAL, ENOSPC for what does not fit. */
export const encodeHeader = (plan: HeaderPlan, path: string): Uint8Array => {
  const { clusterBytes, backing, image, isAllAllocated } = plan;
  const headerBytes = headerBytesOf(clusterBytes);
  const backingName = backing === null ? new Uint8Array(0) : encodeName(backing.filename, path);
  const imageName = encodeName(image.filename, path);
  const total = FIELDS_BYTES + backingName.length + imageName.length;
  // The last byte stays free: some readers want that.
  if (total >= headerBytes) {
    const room = `the header of ${headerBytes} bytes has room for ${headerBytes - FIELDS_BYTES - 1}`;
    throw wrong(`its names have ${total - FIELDS_BYTES} bytes, and ${room}`, path, 'ENOSPC');
  }
  const bytes = new Uint8Array(total);
  const view = viewOf(bytes);
  const set = (field: number, value: number): void => view.setUint32(field, value, true);
  set(0, MAGIC);
  setBacking(view, { link: backing, offset: FIELDS_BYTES, size: backingName.length, path });
  set(FIELD.imageOffset, FIELDS_BYTES + backingName.length);
  set(FIELD.imageSize, imageName.length);
  set(FIELD.clusterBits, Math.log2(clusterBytes));
  set(FIELD.compatible, isAllAllocated ? ALL_ALLOCATED : 0);
  set(FIELD.headerSize, headerBytes);
  setFormat(view, FIELD.imageFormat, image.format, path);
  bytes.set(backingName, FIELDS_BYTES);
  bytes.set(imageName, FIELDS_BYTES + backingName.length);
  return bytes;
};

/**
 * Says durably whether neither bitmap nor backing file is needed. Each way every bit is on disk, and what it stands for: read
 * by the bitmap or without, it is the same. Returns the header as it is then. Errors: ENOSPC, EIO, and the header is as it was, or
 * owed: bits that are cleared later would be set for whoever believes the new one.
 */
export const writeAllAllocated = async (
  changes: HeaderChanges,
  header: AddCowHeader,
  isAllAllocated: boolean,
): Promise<AddCowHeader> => {
  const features = compatibleFeatures(header, isAllAllocated);
  await changes.change(FIELD.compatible, features);
  const fields = header.fields.slice();
  fields.set(features, FIELD.compatible);
  return { ...header, isAllAllocated, fields };
};

/** The field, with ALL_ALLOCATED or without; what else is in it stays. */
export const compatibleFeatures = (header: AddCowHeader, isAllAllocated: boolean): Uint8Array => {
  const features = header.fields.slice(FIELD.compatible, FIELD.compatible + 8);
  const rest = (features[0] ?? 0) & ~ALL_ALLOCATED;
  features[0] = isAllAllocated ? rest | ALL_ALLOCATED : rest;
  return features;
};

/**
 * Names another backing file, or none, durably; the rest of the header stays. Nothing is owed before. Returns the header as it is then.
 * Errors: EINVAL, ENOSPC for a name or a format that does not fit; EIO. A failure leaves the header as it was, or owed.
 */
export const writeBackingLink = async (
  changes: HeaderChanges,
  header: AddCowHeader,
  link: BackingLink | null,
): Promise<AddCowHeader> => {
  const { path } = changes.file;
  const fields = header.fields.slice();
  const view = viewOf(fields);
  const name = link === null ? new Uint8Array(0) : encodeName(link.filename, path);
  const old: ByteRange = {
    start: view.getUint32(FIELD.backingOffset, true),
    end: view.getUint32(FIELD.backingOffset, true) + view.getUint32(FIELD.backingSize, true),
  };
  const offset = name.length === 0 ? 0 : roomFor(name.length, header, path);
  setBacking(view, { link, offset, size: name.length, path });
  if (name.length > 0) await changes.set(offset, name);
  await changes.change(0, fields);
  const image: ByteRange = {
    start: view.getUint32(FIELD.imageOffset, true),
    end: view.getUint32(FIELD.imageOffset, true) + view.getUint32(FIELD.imageSize, true),
  };
  if (old.end > old.start && (old.end <= image.start || image.end <= old.start))
    await clearName(changes, old);
  const backing: ByteRange = { start: offset, end: offset + name.length };
  return { ...header, backing: link, fields, names: link === null ? [image] : [backing, image] };
};

/** What is no name is zero. Not worth an error: nobody looks there, and the link is another one already. */
const clearName = async (changes: HeaderChanges, { start, end }: ByteRange): Promise<void> => {
  await changes.set(start, new Uint8Array(end - start)).catch(() => undefined);
};

/** The first gap that the names of the present header leave. */
const roomFor = (size: number, header: AddCowHeader, path: string): number => {
  let at = FIELDS_BYTES;
  for (const name of [...header.names].sort((a, b) => a.start - b.start)) {
    if (name.start - at >= size) return at;
    at = Math.max(at, name.end);
  }
  if (at + size < header.headerBytes) return at;
  const text = `its header of ${header.headerBytes} bytes has no room for another name of ${size} bytes beside those it has`;
  throw wrong(text, path, 'ENOSPC');
};

const setBacking = (
  view: DataView,
  place: {
    readonly link: BackingLink | null;
    readonly offset: number;
    readonly size: number;
    readonly path: string;
  },
): void => {
  const { link, offset, size, path } = place;
  view.setUint32(FIELD.backingOffset, link === null ? 0 : offset, true);
  view.setUint32(FIELD.backingSize, size, true);
  setFormat(view, FIELD.backingFormat, link === null ? '' : link.format, path);
};

/** `''` for none; null is refused: a stored format is never probed for. */
const setFormat = (view: DataView, field: number, format: string | null, path: string): void => {
  if (format === null) {
    throw wrong('needs the format of its backing file', path, 'EINVAL', 'give it with -F');
  }
  // ASCII, with a NUL behind it.
  if (format.length >= FORMAT_BYTES || !/^[\x21-\x7e]*$/.test(format)) {
    throw wrong(
      `a format is named by at most ${FORMAT_BYTES - 1} ASCII characters, not '${format}'`,
      path,
    );
  }
  for (let i = 0; i < FORMAT_BYTES; i++)
    view.setUint8(field + i, i < format.length ? format.charCodeAt(i) : 0);
};

const encodeName = (name: string, path: string): Uint8Array => {
  const bytes = new TextEncoder().encode(name);
  // What is no Unicode text does not come back from its bytes.
  if (
    name === '' ||
    name.includes('\0') ||
    new TextDecoder('utf-8', { ignoreBOM: true }).decode(bytes) !== name
  )
    throw wrong(`'${name}' cannot be a file's name in its header`, path);
  if (bytes.length > MAX_NAME_BYTES)
    throw wrong(`a file's name of ${bytes.length} bytes is longer than ${MAX_NAME_BYTES}`, path);
  return bytes;
};

const wrong = (
  message: string,
  path: string,
  errno: 'EINVAL' | 'ENOSPC' = 'EINVAL',
  hint?: string,
): BlockError =>
  new BlockError({
    kind: 'bad-request',
    errno,
    message,
    path,
    ...(hint === undefined ? {} : { hint }),
  });
