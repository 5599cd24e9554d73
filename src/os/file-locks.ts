/** Locks on host files. */
import { errnoName } from '../base/errno.ts';
import { check, lastErrno, libc, systemError } from './c-library.ts';

const flockCall = libc.func('int flock(int fd, int operation)');
const [LOCK_EX, LOCK_NB] = [2, 4];

/**
 * flock(2), exclusive: of a file or directory, until the descriptor is closed, also by the death of the process. False: another
 * descriptor has it. Errors: those of the file system.
 */
export const tryLock = (fd: number): boolean => {
  if (Number(flockCall(fd, LOCK_EX | LOCK_NB)) === 0) return true;
  const errno = lastErrno();
  if (errnoName(errno) === 'EAGAIN') return false;
  throw systemError('flock', errno);
};

const fcntlCall = libc.func('int fcntl(int fd, int command, _Inout_ uint8_t *lock)');
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
  const errno = lastErrno();
  if (errnoName(errno) === 'EAGAIN' || errnoName(errno) === 'EACCES') return false;
  throw systemError('lock', errno);
};

/** Whether another open file description holds any lock on some bytes, one if not given. Errors: as `lockByte`. */
export const isByteLocked = (fd: number, offset: number, lengthBytes = 1): boolean => {
  const lock = flockOf(LOCK_TYPE.exclusive, offset, lengthBytes);
  check('lock', Number(fcntlCall(fd, F_OFD_GETLK, lock)));
  return flockView.getInt16(0, true) !== LOCK_TYPE.none;
};
