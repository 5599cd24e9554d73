/** Copies from one file to another that the kernel makes, and blocks that it has two files share. */
import { callAsync, callAtOnce, ioctlCall, libc } from './c-library.ts';

/** Offset in bytes. */
export interface FilePlace {
  readonly fd: number;
  readonly offset: number;
}

const copyCall = libc.func(
  'int64_t copy_file_range(int from, _In_ int64_t *fromOffset, int to, _In_ int64_t *toOffset, size_t length, uint flags)',
);

/**
 * copy_file_range(2) on a thread of its own: bytes go from file to file inside the kernel. Returns how many did, fewer than
 * asked at times, 0 at the end of the first file. Errors: EXDEV between file systems and EOPNOTSUPP where they cannot, EINVAL where
 * the ranges overlap, ENOSPC, EIO.
 */
export const copyFileRange = (
  from: FilePlace,
  to: FilePlace,
  lengthBytes: number,
): Promise<number> => {
  const args = [from.fd, [from.offset], to.fd, [to.offset], lengthBytes, 0];
  return callAsync('copy_file_range', copyCall, ...args);
};

/** As `copyFileRange`, by this thread. */
export const copyFileRangeAtOnce = (
  from: FilePlace,
  to: FilePlace,
  lengthBytes: number,
): number => {
  const args = [from.fd, [from.offset], to.fd, [to.offset], lengthBytes, 0];
  return callAtOnce('copy_file_range', copyCall, ...args);
};

const mmapCall = libc.func(
  'uintptr_t mmap(uintptr_t address, size_t length, int protection, int flags, int fd, int64_t offset)',
);
const munmapCall = libc.func('int munmap(uintptr_t address, size_t length)');
const preadIntoCall = libc.func(
  'int64_t pread(int fd, uintptr_t buffer, size_t length, int64_t offset)',
);
const PROT_READ_WRITE = 3;
const MAP_SHARED = 1;
/** As an unsigned number. */
const MAP_FAILED = Number(2n ** 64n - 1n);

/**
 * pread(2) into a mapping of another file, by this thread. Returns the bytes, from the start on: fewer than asked where the first file
 * ends or no page could be made, none where the range does not begin with a page. What lies past the end of the second file is
 * counted, but nowhere.
 */
export const readIntoFileAtOnce = (from: FilePlace, to: FilePlace, lengthBytes: number): number => {
  const { fd, offset } = to;
  const address = Number(mmapCall(0, lengthBytes, PROT_READ_WRITE, MAP_SHARED, fd, offset));
  if (address === MAP_FAILED) return 0;
  const got = Number(preadIntoCall(from.fd, address, lengthBytes, from.offset));
  munmapCall(address, lengthBytes);
  return Math.max(0, got);
};

const FICLONERANGE = 0x4020940d;

/**
 * ioctl_ficlonerange(2) on a thread of its own: a range of one file becomes a range of another without a copy, until either is
 * written; file systems that can (XFS, Btrfs) do it to whole blocks. After an error any part of it may have been done, and have made
 * the file longer. Errors: EOPNOTSUPP where the file system has no such thing, EXDEV between two of them, ENOTTY of what is no
 * such file, EINVAL for parts of blocks, ENOSPC, EIO.
 */
export const cloneFileRange = async (
  from: FilePlace,
  to: FilePlace,
  lengthBytes: number,
): Promise<void> => {
  const range = new Uint8Array(32);
  const view = new DataView(range.buffer);
  for (const [i, value] of [from.fd, from.offset, lengthBytes, to.offset].entries())
    view.setBigInt64(i * 8, BigInt(value), true);
  await callAsync('ficlonerange', ioctlCall, to.fd, FICLONERANGE, range);
};
