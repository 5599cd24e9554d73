/**
 * The C library, through koffi, and the errors of its calls. What Node lacks of Linux is in the files beside this one, by what it is about.
 *
 * Synchronous calls read errno right after the call. An asynchronous call runs on a libuv thread, whose errno koffi brings to the
 * callback, where it is read first of all.
 */
import koffi from 'koffi';
import { BlockError } from '../base/block-error.ts';
import { errnoName } from '../base/errno.ts';

export const libc = koffi.load('libc.so.6');

type Call = ReturnType<typeof libc.func>;

/** Of the call that has just returned less than 0. */
export const lastErrno = (): number => koffi.errno();

/** What a call that failed with that errno throws. */
export const systemError = (op: string, errno: number): BlockError => {
  const name = errnoName(errno);
  const kind =
    name === 'ENOSPC' || name === 'EDQUOT'
      ? 'no-space'
      : name === 'EOPNOTSUPP'
        ? 'unsupported'
        : 'io';
  return new BlockError({ kind, errno: name, message: `${op} failed: ${name}`, op });
};

/** Calls on a thread of libuv, and again where a signal came in between. Returns what the call does. Errors: what errno says. */
export const callAsync = (op: string, call: Call, ...args: readonly unknown[]): Promise<number> =>
  new Promise((resolve, reject) => {
    call.async(...args, (error: unknown, result: number) => {
      const errno = lastErrno();
      if (error !== null) reject(error);
      else if (result >= 0) resolve(Number(result));
      else if (errnoName(errno) === 'EINTR') resolve(callAsync(op, call, ...args));
      else reject(systemError(op, errno));
    });
  });

/** The same, by this thread: it does not wait for a disk, or has nothing else to do. */
export const callAtOnce = (op: string, call: Call, ...args: readonly unknown[]): number => {
  for (;;) {
    const result = Number(call(...args));
    if (result >= 0) return result;
    const errno = lastErrno();
    if (errnoName(errno) !== 'EINTR') throw systemError(op, errno);
  }
};

/** Throws what errno says when a call has returned less than 0. Right after the call. */
export const check = (op: string, result: number, path?: string): void => {
  if (result >= 0) return;
  const error = systemError(op, lastErrno());
  throw path === undefined ? error : error.with({ path });
};

/** The address of a buffer's first byte, for alignment. Exact: addresses lie below 2^47. */
export const addressOf = (bytes: Uint8Array): number => Number(koffi.address(bytes));

/** `argument`: memory that the request reads or writes. */
export const ioctlCall = libc.func('int ioctl(int fd, ulong request, _In_ uint8_t *argument)');
