/** Ranges of host files: their space, their holes, their ends, and what of them is cached. */
import { errnoName } from '../base/errno.ts';
import {
  addressOf,
  callAsync,
  callAtOnce,
  check,
  lastErrno,
  libc,
  systemError,
} from './c-library.ts';

const fallocateCall = libc.func('int fallocate(int fd, int mode, int64_t offset, int64_t length)');
const lseekCall = libc.func('int64_t lseek(int fd, int64_t offset, int whence)');

/** Modes of fallocate(2). */
export const FALLOC = {
  KEEP_SIZE: 1,
  PUNCH_HOLE: 2,
  COLLAPSE_RANGE: 8,
  ZERO_RANGE: 16,
  INSERT_RANGE: 32,
} as const;
/** `whence` of lseek(2). */
export const SEEK = { SET: 0, CUR: 1, END: 2, DATA: 3, HOLE: 4 } as const;

/**
 * fallocate(2). `mode` is a sum of `FALLOC` flags; offset and length in bytes. Errors: EOPNOTSUPP where the file
 * system cannot, ENOSPC, EIO, EINVAL.
 */
export const fallocate = async (
  fd: number,
  mode: number,
  offset: number,
  lengthBytes: number,
): Promise<void> => {
  await callAsync('fallocate', fallocateCall, fd, mode, offset, lengthBytes);
};

/** The same, by this thread: where it does not wait for a disk. */
export const fallocateAtOnce = (
  fd: number,
  mode: number,
  offset: number,
  lengthBytes: number,
): void => {
  callAtOnce('fallocate', fallocateCall, fd, mode, offset, lengthBytes);
};

/**
 * lseek(2) with SEEK_DATA or SEEK_HOLE: the offset found, or null for ENXIO (no data from there on). Synchronous:
 * microseconds on local file systems. Moves the descriptor's position, which nobody here uses.
 */
export const seekDataOrHole = (fd: number, offset: number, whence: 3 | 4): number | null => {
  const found = Number(lseekCall(fd, offset, whence));
  if (found >= 0) return found;
  const errno = lastErrno();
  if (errnoName(errno) === 'ENXIO') return null;
  throw systemError('lseek', errno);
};

/** Bytes of a file or block device. Errors: those of lseek(2). */
export const endOf = (fd: number): number => {
  const end = Number(lseekCall(fd, 0, SEEK.END));
  check('lseek', end);
  return end;
};

const preadCall = libc.func(
  'int64_t preadv2(int fd, uintptr_t vector, int count, int64_t offset, int flags)',
);
const RWF_NOWAIT = 8;
/** struct iovec. */
const vector = new DataView(new SharedArrayBuffer(16));
const vectorAddress = addressOf(new Uint8Array(vector.buffer));

/**
 * preadv2(2) with RWF_NOWAIT: what of a range is in the host's page cache, from its start on, read to `address`, which
 * does not move. A microsecond, never waits, but begins to read what is missing. Allocation free. Returns the bytes
 * read, or a negative errno: EAGAIN for nothing, EOPNOTSUPP where the file system cannot say (tmpfs).
 */
export const readCached = (
  fd: number,
  address: number,
  lengthBytes: number,
  offset: number,
): number => {
  vector.setUint32(0, address % 2 ** 32, true);
  vector.setUint32(4, Math.floor(address / 2 ** 32), true);
  vector.setUint32(8, lengthBytes, true);
  const got = Number(preadCall(fd, vectorAddress, 1, offset, RWF_NOWAIT));
  return got < 0 ? -lastErrno() : got;
};

const fadviseCall = libc.func(
  'int posix_fadvise(int fd, int64_t offset, int64_t length, int advice)',
);
const FADV_WILLNEED = 3;

/** Has the kernel begin to read a range of a file, all of it at once, where it is not cached. A wish: never fails. */
export const readAheadOf = (fd: number, offset: number, lengthBytes: number): Promise<void> =>
  new Promise((resolve) => {
    fadviseCall.async(fd, offset, lengthBytes, FADV_WILLNEED, () => resolve());
  });
