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

const pipe2Call = libc.func('int pipe2(_Out_ int *fds, int flags)');
const mountCall = libc.func('int mount(str source, str target, str type, ulong flags, str data)');
const umount2Call = libc.func('int umount2(str target, int flags)');

const O_CLOEXEC = 0o2000000;
const O_NONBLOCK = 0o4000;

/** pipe2(2), not inherited by children, its reading end not blocking. Both ends are the caller's to close. */
export const openPipe = (): { readEnd: number; writeEnd: number } => {
  const ends = [0, 0];
  check('pipe2', Number(pipe2Call(ends, O_CLOEXEC | O_NONBLOCK)));
  const [readEnd, writeEnd] = ends;
  return { readEnd: readEnd ?? -1, writeEnd: writeEnd ?? -1 };
};

/** Flags of mount(2). */
export const MS = { RDONLY: 1, NOSUID: 2, NODEV: 4, NOEXEC: 8, NOATIME: 1024 } as const;
/** Flags of umount2(2). */
export const MNT_DETACH = 2;

/** mount(2). Needs CAP_SYS_ADMIN. Errors: those of the host, with the mountpoint as path. */
export const mountFileSystem = (options: {
  readonly source: string;
  readonly mountpoint: string;
  readonly type: string;
  readonly flags: number;
  readonly data: string;
}): void => {
  const { source, mountpoint, type, flags, data } = options;
  check('mount', Number(mountCall(source, mountpoint, type, flags, data)), mountpoint);
};

/** umount2(2); EBUSY while something uses the mount, unless `flags` has MNT_DETACH. */
export const unmountFileSystem = (mountpoint: string, flags: number): void => {
  check('umount', Number(umount2Call(mountpoint, flags)), mountpoint);
};

const check = (op: string, result: number, path?: string): void => {
  if (result >= 0) return;
  const error = systemError(op, koffi.errno());
  throw path === undefined ? error : error.with({ path });
};

/** The address of a buffer's first byte, for alignment. Exact: addresses lie below 2^47. */
export const addressOf = (bytes: Uint8Array): number => Number(koffi.address(bytes));
