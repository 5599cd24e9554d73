/**
 * Writing and reading add-cow files by docs/ADD-COW.md alone, without our driver: small files, held in memory. What is
 * read is judged strictly.
 */
import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';

export interface AddCowFile {
  readonly clusterBytes: number;
  readonly backing: { readonly name: string; readonly format: string } | null;
  readonly image: { readonly name: string; readonly format: string };
  readonly isAllAllocated: boolean;
  /** One for each cluster. */
  readonly bits: readonly boolean[];
}

const roundUp = (value: number, unit: number): number => Math.ceil(value / unit) * unit;

export const encodeAddCow = (f: AddCowFile): Buffer => {
  const headerBytes = Math.max(4096, f.clusterBytes);
  const bitmapBytes = roundUp(Math.ceil(f.bits.length / 8), f.clusterBytes);
  const bytes = Buffer.alloc(headerBytes + bitmapBytes);
  bytes.write('ACOW', 0, 'ascii');
  let at = 76;
  if (f.backing !== null) {
    bytes.writeUInt32LE(at, 4);
    bytes.writeUInt32LE(Buffer.byteLength(f.backing.name), 8);
    at += bytes.write(f.backing.name, at, 'utf8');
    bytes.write(f.backing.format, 44, 'ascii');
  }
  bytes.writeUInt32LE(at, 12);
  bytes.writeUInt32LE(Buffer.byteLength(f.image.name), 16);
  bytes.write(f.image.name, at, 'utf8');
  bytes.write(f.image.format, 60, 'ascii');
  bytes.writeUInt32LE(Math.log2(f.clusterBytes), 20);
  bytes.writeUInt32LE(f.isAllAllocated ? 1 : 0, 32);
  bytes.writeUInt32LE(headerBytes, 40);
  f.bits.forEach((isSet, i) => {
    if (!isSet) return;
    const byte = headerBytes + (i >> 3);
    bytes[byte] = (bytes[byte] ?? 0) | (1 << (i & 7));
  });
  return bytes;
};

export const writeAddCow = (path: string, f: AddCowFile): Promise<void> =>
  writeFile(path, encodeAddCow(f));

/** Beside `path`: an image file of 2s over a backing file of 1s, both raw, and the add-cow file with these bits. */
export const writeAddCowOverRaw = async (
  path: string,
  clusterBytes: number,
  bits: readonly boolean[],
): Promise<void> => {
  const [backing, image] = ['base.raw', 'disk.raw'] as const;
  const bytes = bits.length * clusterBytes;
  await writeFile(join(dirname(path), backing), Buffer.alloc(bytes, 1));
  await writeFile(join(dirname(path), image), Buffer.alloc(bytes, 2));
  await writeAddCow(path, {
    clusterBytes,
    backing: { name: backing, format: 'raw' },
    image: { name: image, format: 'raw' },
    isAllAllocated: false,
    bits,
  });
};

const formatAt = (bytes: Buffer, at: number): string => {
  const field = bytes.subarray(at, at + 16);
  const end = field.indexOf(0);
  assert.ok(end >= 0, 'a format ends with a NUL');
  assert.ok(
    field.subarray(end).every((b) => b === 0),
    'a format is padded with zeros',
  );
  return field.toString('ascii', 0, end);
};

/** `imageBytes`: of the image file. Throws for a file that breaks a rule of the format. */
export const decodeAddCow = (bytes: Buffer, imageBytes: number): AddCowFile => {
  const u32 = (at: number): number => bytes.readUInt32LE(at);
  assert.equal(bytes.toString('ascii', 0, 4), 'ACOW');
  assert.equal(bytes.readBigUInt64LE(24), 0n, 'features');
  const clusterBytes = 2 ** u32(20);
  const headerBytes = Math.max(4096, clusterBytes);
  assert.equal(u32(40), headerBytes, 'header size');
  const clusters = Math.ceil(imageBytes / clusterBytes);
  assert.equal(
    bytes.length,
    headerBytes + roundUp(Math.ceil(clusters / 8), clusterBytes),
    'length',
  );
  const rest = Buffer.from(bytes.subarray(76, headerBytes));
  const nameAt = (field: number): string | null => {
    const [offset, size] = [u32(field), u32(field + 4)];
    assert.equal(offset === 0, size === 0);
    if (offset === 0) return null;
    assert.ok(offset >= 76 && offset <= headerBytes - 2 && size < headerBytes - 76);
    assert.ok(offset + size <= headerBytes);
    rest.fill(0, offset - 76, offset - 76 + size);
    return bytes.toString('utf8', offset, offset + size);
  };
  const [backing, image] = [nameAt(4), nameAt(12)];
  assert.ok(image !== null);
  assert.ok(
    rest.every((b) => b === 0),
    'what is no name is zero',
  );
  const backingFormat = formatAt(bytes, 44);
  assert.equal(backing === null, backingFormat === '');
  const bit = (i: number): boolean => ((bytes[headerBytes + (i >> 3)] ?? 0) & (1 << (i & 7))) !== 0;
  for (let i = clusters; i < (bytes.length - headerBytes) * 8; i++) assert.ok(!bit(i), `bit ${i}`);
  const bits = Array.from({ length: clusters }, (_, i) => bit(i));
  const isAllAllocated = (bytes.readBigUInt64LE(32) & 1n) === 1n;
  if (isAllAllocated) assert.ok(bits.every(Boolean), 'ALL_ALLOCATED has every bit set');
  return {
    clusterBytes,
    backing: backing === null ? null : { name: backing, format: backingFormat },
    image: { name: image, format: formatAt(bytes, 60) },
    isAllAllocated,
    bits,
  };
};

/** What the guest sees. `image`: what the image file shows; `backing`: what the chain below shows. */
export const guestOf = (f: AddCowFile, image: Uint8Array, backing: Uint8Array): Uint8Array => {
  const guest = new Uint8Array(image.length);
  f.bits.forEach((isSet, i) => {
    const start = i * f.clusterBytes;
    const end = Math.min(start + f.clusterBytes, image.length);
    guest.set((isSet ? image : backing).subarray(start, end), start);
  });
  return guest;
};

/** The file at a path, over an image file of so many bytes. */
export const readAddCow = async (path: string, imageBytes: number): Promise<AddCowFile> =>
  decodeAddCow(await readFile(path), imageBytes);
