/** Content of test images, and reading and writing parts of files. */
import { open } from 'node:fs/promises';

export const MIB = 1 << 20;

/** Bytes that differ between sectors; another `salt`, other bytes. */
export const pattern = (lengthBytes: number, salt = 1): Buffer => {
  const bytes = Buffer.alloc(lengthBytes);
  for (let i = 0; i < lengthBytes; i++) bytes[i] = (i * 7 + (i >> 9) * 13 + salt) & 0xff;
  return bytes;
};

export const readRange = async (
  path: string,
  offset: number,
  lengthBytes: number,
): Promise<Buffer> => {
  const file = await open(path, 'r');
  try {
    const buffer = Buffer.alloc(lengthBytes);
    const { bytesRead } = await file.read(buffer, 0, lengthBytes, offset);
    return buffer.subarray(0, bytesRead);
  } finally {
    await file.close();
  }
};

/** Written and synced. */
export const writeRange = async (
  path: string,
  offset: number,
  bytes: Uint8Array,
): Promise<void> => {
  const file = await open(path, 'r+');
  try {
    await file.write(bytes, 0, bytes.length, offset);
    await file.sync();
  } finally {
    await file.close();
  }
};
