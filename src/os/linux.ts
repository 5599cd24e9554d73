/**
 * The Linux system calls that Node lacks, through koffi. The only file that loads a C library.
 *
 * Synchronous calls read errno right after the call. An asynchronous call runs on a libuv thread, whose errno is
 * lost; a failed one is therefore repeated synchronously, so every call offered as asynchronous is idempotent.
 */
import koffi from 'koffi';
import { BlockError } from '../base/block-error.ts';
import { errnoName } from '../base/errno.ts';

const libc = koffi.load('libc.so.6');

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

const systemError = (op: string, errno: number): BlockError => {
  const name = errnoName(errno);
  const kind =
    name === 'ENOSPC' || name === 'EDQUOT'
      ? 'no-space'
      : name === 'EOPNOTSUPP'
        ? 'unsupported'
        : 'io';
  return new BlockError({ kind, errno: name, message: `${op} failed: ${name}`, op });
};

/** Calls asynchronously; on failure once more synchronously to learn errno. */
const callAsync = (
  op: string,
  call: ReturnType<typeof libc.func>,
  ...args: readonly number[]
): Promise<number> =>
  new Promise((resolve, reject) => {
    call.async(...args, (error: unknown, result: number) => {
      if (error === null && result >= 0) {
        resolve(Number(result));
        return;
      }
      const again = Number(call(...args));
      if (again >= 0) resolve(again);
      else reject(systemError(op, koffi.errno()));
    });
  });

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

/**
 * lseek(2) with SEEK_DATA or SEEK_HOLE: the offset found, or null for ENXIO (no data from there on). Synchronous:
 * microseconds on local file systems. Moves the descriptor's position, which nobody here uses.
 */
export const seekDataOrHole = (fd: number, offset: number, whence: 3 | 4): number | null => {
  const found = Number(lseekCall(fd, offset, whence));
  if (found >= 0) return found;
  const errno = koffi.errno();
  if (errnoName(errno) === 'ENXIO') return null;
  throw systemError('lseek', errno);
};
