/** Descriptors: pipes and files in memory, whether one is readable, and what one stands for. */
import { addressOf, check, lastErrno, libc } from './c-library.ts';

const pipe2Call = libc.func('int pipe2(_Out_ int *fds, int flags)');

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
  return moved < 0 ? -lastErrno() : moved;
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
