/**
 * The Linux system calls that Node lacks, through koffi. The only file that loads a C library.
 *
 * Synchronous calls read errno right after the call. An asynchronous call runs on a libuv thread, whose errno koffi brings to the
 * callback, where it is read first of all.
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

/** Calls asynchronously, and again where a signal came in between. Errors: what errno says. */
const callAsync = (
  op: string,
  call: ReturnType<typeof libc.func>,
  ...args: readonly unknown[]
): Promise<number> =>
  new Promise((resolve, reject) => {
    call.async(...args, (error: unknown, result: number) => {
      const errno = koffi.errno();
      if (error !== null) reject(error);
      else if (result >= 0) resolve(Number(result));
      else if (errnoName(errno) === 'EINTR') resolve(callAsync(op, call, ...args));
      else reject(systemError(op, errno));
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

/** The same, by this thread: where it does not wait for a disk. */
export const fallocateAtOnce = (
  fd: number,
  mode: number,
  offset: number,
  lengthBytes: number,
): void => {
  while (Number(fallocateCall(fd, mode, offset, lengthBytes)) < 0) {
    const errno = koffi.errno();
    // A signal came in between.
    if (errnoName(errno) !== 'EINTR') throw systemError('fallocate', errno);
  }
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

/** Bytes of a file or block device. Errors: those of lseek(2). */
export const endOf = (fd: number): number => {
  const end = Number(lseekCall(fd, 0, SEEK.END));
  check('lseek', end);
  return end;
};

const pipe2Call = libc.func('int pipe2(_Out_ int *fds, int flags)');
const mountCall = libc.func('int mount(str source, str target, str type, ulong flags, str data)');

const O_CLOEXEC = 0o2000000;
const O_NONBLOCK = 0o4000;

/** pipe2(2), not inherited by children, its reading end not blocking. Both ends are the caller's to close. */
export const openPipe = (): { readEnd: number; writeEnd: number } => {
  const ends = [0, 0];
  check('pipe2', Number(pipe2Call(ends, O_CLOEXEC | O_NONBLOCK)));
  const [readEnd, writeEnd] = ends;
  return { readEnd: readEnd ?? -1, writeEnd: writeEnd ?? -1 };
};

const fcntlSizeCall = libc.func('int fcntl(int fd, int command, int value)');
const spliceCall = libc.func(
  'int64_t splice(int from, uintptr_t fromOffset, int to, uintptr_t toOffset, size_t length, uint flags)',
);

const F_SETPIPE_SZ = 1031;

/** Makes a pipe hold so many bytes, a power of two, or else what the host allows without privilege; returns that. */
export const setPipeCapacity = (fd: number, bytes: number): number => {
  for (let wanted = bytes; wanted > 0; wanted /= 2) {
    const got = Number(fcntlSizeCall(fd, F_SETPIPE_SZ, wanted));
    if (got > 0) return got;
  }
  return 0;
};

/**
 * splice(2), synchronous, allocation free. `fromOffset`: address of a 64-bit offset in memory that does not move, 0 for
 * a pipe. Returns what was moved, or a negative errno.
 */
export const splice = (
  from: number,
  fromOffset: number,
  to: number,
  lengthBytes: number,
): number => {
  const moved = Number(spliceCall(from, fromOffset, to, 0, lengthBytes, 0));
  return moved < 0 ? -koffi.errno() : moved;
};

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

/** Throws what errno says when a call has returned less than 0. Right after the call. */
export const check = (op: string, result: number, path?: string): void => {
  if (result >= 0) return;
  const error = systemError(op, koffi.errno());
  throw path === undefined ? error : error.with({ path });
};

/** The address of a buffer's first byte, for alignment. Exact: addresses lie below 2^47. */
export const addressOf = (bytes: Uint8Array): number => Number(koffi.address(bytes));

const madviseCall = libc.func('int madvise(uintptr_t address, size_t length, int advice)');
const MADV_HUGEPAGE = 14;

/** Asks for huge pages under a buffer's memory: fewer translations to look up when it is copied. A wish: never fails. */
export const preferHugePages = (bytes: Uint8Array): void => {
  const pageBytes = 4096;
  const start = Math.ceil(addressOf(bytes) / pageBytes) * pageBytes;
  const end = Math.floor((addressOf(bytes) + bytes.length) / pageBytes) * pageBytes;
  madviseCall(start, end - start, MADV_HUGEPAGE);
};

const preadCall = libc.func(
  'int64_t preadv2(int fd, uintptr_t vector, int count, int64_t offset, int flags)',
);
const RWF_NOWAIT = 8;
/** struct iovec. */
const vector = new DataView(new SharedArrayBuffer(16));
const vectorAddress = Number(koffi.address(new Uint8Array(vector.buffer)));

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
  return got < 0 ? -koffi.errno() : got;
};

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
  for (;;) {
    const args = [from.fd, [from.offset], to.fd, [to.offset], lengthBytes, 0];
    const copied = Number(copyCall(...args));
    if (copied >= 0) return copied;
    const errno = koffi.errno();
    // A signal came in between.
    if (errnoName(errno) !== 'EINTR') throw systemError('copy_file_range', errno);
  }
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

const fadviseCall = libc.func(
  'int posix_fadvise(int fd, int64_t offset, int64_t length, int advice)',
);
const FADV_WILLNEED = 3;

/** Has the kernel begin to read a range of a file, all of it at once, where it is not cached. A wish: never fails. */
export const readAheadOf = (fd: number, offset: number, lengthBytes: number): Promise<void> =>
  new Promise((resolve) => {
    fadviseCall.async(fd, offset, lengthBytes, FADV_WILLNEED, () => resolve());
  });

const rusageCall = libc.func('int getrusage(int who, uintptr_t usage)');
const RUSAGE_THREAD = 1;
const RUSAGE_BYTES = 144;
const VOLUNTARY_SWITCHES_AT = 128;
/** struct rusage, in memory that does not move. */
const rusage = new DataView(new SharedArrayBuffer(RUSAGE_BYTES));
const rusageAddress = Number(koffi.address(new Uint8Array(rusage.buffer)));

/** getrusage(2): how often the calling thread has given its core away because it had to wait, modulo 2^32. Not counted: when it was taken away. */
export const timesWaited = (): number => {
  rusageCall(RUSAGE_THREAD, rusageAddress);
  return rusage.getUint32(VOLUNTARY_SWITCHES_AT, true);
};

const yieldCall = libc.func('int sched_yield()');

/** Lets another thread that waits for this core have it. */
export const yieldCore = (): void => {
  yieldCall();
};

const pollCall = libc.func('int poll(uintptr_t descriptors, ulong count, int timeout)');
const POLLIN = 1;
/** struct pollfd: descriptor s32, events s16, revents s16. */
const polled = new DataView(new ArrayBuffer(8));
const polledAddress = addressOf(new Uint8Array(polled.buffer));
polled.setInt16(4, POLLIN, true);

/** Whether a read of a descriptor would return at once, also with an error. Never waits; allocation free. */
export const isReadable = (fd: number): boolean => {
  polled.setInt32(0, fd, true);
  return Number(pollCall(polledAddress, 1, 0)) > 0;
};

const ioctlCall = libc.func('int ioctl(int fd, ulong request, _In_ uint8_t *argument)');
const FUSE_DEV_IOC_BACKING_OPEN = 0x4010e501;
const FUSE_DEV_IOC_BACKING_CLOSE = 0x4004e502;

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

/** Registers a file for passthrough; its id. Errors: EPERM without CAP_SYS_ADMIN, ELOOP for a stacked file system. */
export const openBacking = (fuse: number, file: number): number => {
  const map = new Uint8Array(16);
  new DataView(map.buffer).setInt32(0, file, true);
  const id = Number(ioctlCall(fuse, FUSE_DEV_IOC_BACKING_OPEN, map));
  check('passthrough', id);
  return id;
};

/** Handles that were opened with the id keep the file. */
export const closeBacking = (fuse: number, id: number): void => {
  const argument = new Uint8Array(4);
  new DataView(argument.buffer).setInt32(0, id, true);
  ioctlCall(fuse, FUSE_DEV_IOC_BACKING_CLOSE, argument);
};

const FUSE_DEV_IOC_CLONE = 0x8004e500;

/**
 * Makes `fresh`, just opened from /dev/fuse, another channel of a mount: a request that is read from it ends with an error
 * when it is closed, instead of waiting for an answer for ever.
 */
export const cloneFuseDevice = (fresh: number, fuse: number): void => {
  const argument = new Uint8Array(4);
  new DataView(argument.buffer).setUint32(0, fuse, true);
  check('clone /dev/fuse', Number(ioctlCall(fresh, FUSE_DEV_IOC_CLONE, argument)));
};

const flockCall = libc.func('int flock(int fd, int operation)');
const [LOCK_EX, LOCK_NB] = [2, 4];

/**
 * flock(2), exclusive: of a file or directory, until the descriptor is closed, also by the death of the process. False: another
 * descriptor has it. Errors: those of the file system.
 */
export const tryLock = (fd: number): boolean => {
  if (Number(flockCall(fd, LOCK_EX | LOCK_NB)) === 0) return true;
  const errno = koffi.errno();
  if (errnoName(errno) === 'EAGAIN') return false;
  throw systemError('flock', errno);
};

const memfdCall = libc.func('int memfd_create(str name, uint flags)');
const MFD_CLOEXEC = 1;

/** An unnamed file in memory, not inherited by children; the caller's to close. */
export const openMemoryFile = (name: string): number => {
  const fd = Number(memfdCall(name, MFD_CLOEXEC));
  check('memfd_create', fd);
  return fd;
};

const dup3Call = libc.func('int dup3(int from, int to, int flags)');

/** dup3(2): `to` stands for what `from` stands for, in place of what it was. `inherited`: by children. Errors: EBADF. */
export const putDescriptor = (
  from: number,
  to: number,
  { inherited }: { readonly inherited: boolean },
): void => check('dup3', Number(dup3Call(from, to, inherited ? 0 : O_CLOEXEC)));

const fcntlCall = libc.func('int fcntl(int fd, int command, _Inout_ uint8_t *lock)');
const prctlCall = libc.func('int prctl(int option, ulong a, ulong b, ulong c, ulong d)');

const F_OFD_GETLK = 36;
const F_OFD_SETLK = 37;
const LOCK_TYPE = { shared: 0, exclusive: 1, none: 2 } as const;
/** struct flock of x86-64 and arm64: l_type s16, l_whence s16, l_start s64 at 8, l_len s64 at 16, l_pid s32 at 24. */
const FLOCK_BYTES = 32;

/** Of one call at a time: they are synchronous, and there are ten for each image. */
const flock = new Uint8Array(new ArrayBuffer(FLOCK_BYTES));
const flockView = new DataView(flock.buffer);

/** Offset and length below 2^32. */
const flockOf = (type: number, offset: number, lengthBytes: number): Uint8Array => {
  flock.fill(0);
  flockView.setInt16(0, type, true);
  flockView.setUint32(8, offset, true);
  flockView.setUint32(16, lengthBytes, true);
  return flock;
};

/**
 * Takes or gives back an open-file-description lock on one byte; never waits. False: another description holds one that
 * conflicts. Errors: EINVAL, ENOLCK, EOPNOTSUPP on file systems without such locks; EBADF for an exclusive lock on a
 * descriptor that is open for reading.
 */
export const lockByte = (
  fd: number,
  offset: number,
  type: 'shared' | 'exclusive' | 'none',
): boolean => {
  if (Number(fcntlCall(fd, F_OFD_SETLK, flockOf(LOCK_TYPE[type], offset, 1))) === 0) return true;
  const errno = koffi.errno();
  if (errnoName(errno) === 'EAGAIN' || errnoName(errno) === 'EACCES') return false;
  throw systemError('lock', errno);
};

/** Whether another open file description holds any lock on some bytes, one if not given. Errors: as `lockByte`. */
export const isByteLocked = (fd: number, offset: number, lengthBytes = 1): boolean => {
  const lock = flockOf(LOCK_TYPE.exclusive, offset, lengthBytes);
  check('lock', Number(fcntlCall(fd, F_OFD_GETLK, lock)));
  return flockView.getInt16(0, true) !== LOCK_TYPE.none;
};

const PR_SET_PDEATHSIG = 1;
const PR_SET_IO_FLUSHER = 57;
const SIGKILL = 9;

/** The kernel kills this process when the thread that started it has ended. The caller checks its parent afterwards. */
export const dieWithParent = (): void =>
  check('prctl', Number(prctlCall(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)));

/**
 * This process and its children write what others must flush: the kernel does not make their writes wait for the dirty
 * limit, nor their allocations for that writing. False without the privilege (CAP_SYS_RESOURCE).
 */
export const becomeIoFlusher = (): boolean =>
  Number(prctlCall(PR_SET_IO_FLUSHER, 1, 0, 0, 0)) === 0;

const exitCall = libc.func('void _exit(int status)');

/** _exit(2): also while a thread is in a call that does not return. Nothing is flushed, nobody is told. */
export const exitAtOnce = (status: number): void => {
  exitCall(status);
};

const getxattrCall = libc.func(
  'int64_t getxattr(str path, str name, _Out_ uint8_t *value, size_t size)',
);
const MAX_ATTRIBUTE_BYTES = 4096;

/** Memory that does not move: small typed arrays may lie in the heap until their buffer is asked for. */
const pinned = (bytes: number): Uint8Array => new Uint8Array(new ArrayBuffer(bytes));

/** The value of an extended attribute; null when there is none. On a thread of its own: a mount may be slow to answer. */
export const extendedAttribute = (path: string, name: string): Promise<string | null> =>
  new Promise((resolve) => {
    const value = pinned(MAX_ATTRIBUTE_BYTES);
    getxattrCall.async(path, name, value, value.length, (error: unknown, length: number) => {
      const found = error === null && length >= 0;
      resolve(found ? Buffer.from(value.subarray(0, Number(length))).toString('utf8') : null);
    });
  });
