/** Reading the header, and refusing what breaks the format: every field is checked before it is used. */
import { BlockError, invalidImage } from '../../src/base/block-error.ts';
import { viewOf } from '../../src/base/byte-order.ts';
import type { ByteRange } from '../../src/base/range.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { BackingLink, DataFileLink } from '../../src/block/image-description.ts';
import type { Node } from '../../src/block/node.ts';
import {
  ALL_ALLOCATED,
  FIELD,
  FIELDS_BYTES,
  FORMAT_BYTES,
  headerBytesOf,
  MAGIC,
  MAX_CLUSTER_BITS,
  MAX_NAME_BYTES,
  MIN_CLUSTER_BITS,
  OLD_MAGIC,
} from './layout.ts';

export interface AddCowHeader {
  readonly clusterBytes: number;
  /** Where the bitmap begins. */
  readonly headerBytes: number;
  readonly backing: BackingLink | null;
  readonly image: DataFileLink;
  /** Neither bitmap nor backing file is used. */
  readonly isAllAllocated: boolean;
  /** The 76 bytes of the fields as they are in the file: what is not known in them is kept. */
  readonly fields: Uint8Array;
  /** Where the names lie. */
  readonly names: readonly ByteRange[];
}

/** What the first bytes are: this format, an older layout of it (named for people), or neither. */
export const layoutOf = (head: Uint8Array): 'current' | { readonly older: string } | null => {
  if (head.length >= OLD_MAGIC.length && OLD_MAGIC.every((byte, i) => head[i] === byte))
    return { older: 'the layout before version 14' };
  if (head.length < 8 || viewOf(head).getUint32(0, true) !== MAGIC) return null;
  const second = viewOf(head).getUint32(FIELD.backingOffset, true);
  // There a version stood, and a backing file's name never begins inside the fields.
  if (second > 0 && second < FIELDS_BYTES)
    return { older: 'the layout of versions 14 to 17, which have a version field' };
  return 'current';
};

/** Errors: kind invalid-image naming the field, its value and its place; EOPNOTSUPP for older layouts and unknown features. */
export const readHeader = async (file: Node, path: string): Promise<AddCowHeader> => {
  const fields = new Uint8Array(FIELDS_BYTES);
  await file.readClipped(guestOffset(0), fields);
  const layout = layoutOf(fields);
  if (layout === null)
    throw invalidImage('is no add-cow file: its magic is not ACOW', { path, offset: 0 });
  if (layout !== 'current') throw unsupported(`has ${layout.older}, which is not read`, path, 0);
  if (file.lengthBytes < FIELDS_BYTES) {
    throw invalidImage(
      `ends after ${file.lengthBytes} bytes, inside its header of ${FIELDS_BYTES}`,
      { path },
    );
  }
  const view = viewOf(fields);
  refuseFeatures(view, path);
  const clusterBits = view.getUint32(FIELD.clusterBits, true);
  if (clusterBits < MIN_CLUSTER_BITS || clusterBits > MAX_CLUSTER_BITS) {
    const range = `${MIN_CLUSTER_BITS} to ${MAX_CLUSTER_BITS}`;
    throw bad(`cluster_bits is ${clusterBits}, not ${range}`, path, FIELD.clusterBits);
  }
  const clusterBytes = 2 ** clusterBits;
  const headerBytes = view.getUint32(FIELD.headerSize, true);
  if (headerBytes !== headerBytesOf(clusterBytes)) {
    const text = `header_size is ${headerBytes}; with clusters of ${clusterBytes} bytes it is ${headerBytesOf(clusterBytes)}`;
    throw unsupported(text, path, FIELD.headerSize);
  }
  const reader = { file, path, view, fields, headerBytes };
  const backing = await readBacking(reader);
  const image = await readName(reader, 'image file', FIELD.imageOffset);
  if (image === null) throw bad('names no image file', path, FIELD.imageOffset);
  const imageFormat = readFormat(reader, 'image_fmt', FIELD.imageFormat);
  if (imageFormat === '') throw bad('image_fmt is empty', path, FIELD.imageFormat);
  return {
    clusterBytes,
    headerBytes,
    backing: backing?.link ?? null,
    image: { filename: image.text, format: imageFormat },
    isAllAllocated: (view.getUint32(FIELD.compatible, true) & ALL_ALLOCATED) !== 0,
    fields,
    names: backing === null ? [image.range] : [backing.range, image.range],
  };
};

interface FieldReader {
  readonly file: Node;
  readonly path: string;
  readonly view: DataView;
  readonly fields: Uint8Array;
  readonly headerBytes: number;
}

interface Name {
  readonly text: string;
  readonly range: ByteRange;
}

const refuseFeatures = (view: DataView, path: string): void => {
  const low = view.getUint32(FIELD.features, true);
  const high = view.getUint32(FIELD.features + 4, true);
  if (low === 0 && high === 0) return;
  const bits = (BigInt(high) << 32n) | BigInt(low);
  throw unsupported(
    `needs features 0x${bits.toString(16)}, which are not known`,
    path,
    FIELD.features,
  );
};

const readBacking = async (
  reader: FieldReader,
): Promise<{ readonly link: BackingLink; readonly range: ByteRange } | null> => {
  const name = await readName(reader, 'backing file', FIELD.backingOffset);
  const format = readFormat(reader, 'backing_fmt', FIELD.backingFormat);
  if (name === null) {
    if (format === '') return null;
    throw bad(
      `backing_fmt is '${format}', and there is no backing file`,
      reader.path,
      FIELD.backingFormat,
    );
  }
  if (format === '') throw bad('backing_fmt is empty', reader.path, FIELD.backingFormat);
  return { link: { filename: name.text, format }, range: name.range };
};

/** The name that an offset and, four bytes on, a size stand for; null for none. */
const readName = async (reader: FieldReader, what: string, field: number): Promise<Name | null> => {
  const { view, path, headerBytes, file } = reader;
  const offset = view.getUint32(field, true);
  const size = view.getUint32(field + 4, true);
  if (offset === 0 && size === 0) return null;
  if (offset === 0 || size === 0)
    throw bad(`the name of the ${what} has offset ${offset} and size ${size}`, path, field);
  if (offset < FIELDS_BYTES || offset + size > headerBytes) {
    const place = `${size} bytes at ${offset}`;
    const room = `${FIELDS_BYTES} to ${headerBytes}`;
    throw bad(`the name of the ${what}, ${place}, is outside the header's ${room}`, path, field);
  }
  if (size > MAX_NAME_BYTES)
    throw bad(
      `the name of the ${what} has ${size} bytes, more than ${MAX_NAME_BYTES}`,
      path,
      field + 4,
    );
  const bytes = new Uint8Array(size);
  await file.readClipped(guestOffset(offset), bytes);
  if (bytes.includes(0)) throw bad(`the name of the ${what} has a NUL in it`, path, offset);
  return {
    text: decodeName(bytes, what, path, offset),
    range: { start: offset, end: offset + size },
  };
};

const decodeName = (bytes: Uint8Array, what: string, path: string, offset: number): string => {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    throw bad(`the name of the ${what} is not UTF-8`, path, offset);
  }
};

/** Up to the first NUL, or all 16 bytes of it. */
const readFormat = ({ fields, path }: FieldReader, what: string, field: number): string => {
  const bytes = fields.subarray(field, field + FORMAT_BYTES);
  const end = bytes.indexOf(0);
  const name = Buffer.from(end < 0 ? bytes : bytes.subarray(0, end)).toString('latin1');
  if (/^[\x21-\x7e]*$/.test(name)) return name;
  throw bad(`${what} is not ASCII`, path, field);
};

const bad = (message: string, path: string, offset: number): BlockError =>
  invalidImage(message, { path, offset });

const unsupported = (message: string, path: string, offset: number): BlockError =>
  new BlockError({ kind: 'unsupported', message, path, offset, op: 'open' });
