/** Waits that end when nobody wants their result any more. */
import type { ByteRange } from '../base/range.ts';
import type { RangeLock, RangeLocks } from '../block/range-locks.ts';

/** The lock, or null when nobody wants it any more: it is given back when it comes. */
export const lockOrAborted = async (
  locks: RangeLocks,
  range: ByteRange,
  signal: AbortSignal,
): Promise<RangeLock | null> => {
  const pending = locks.acquire(range);
  await orAborted(pending, signal);
  if (!signal.aborted) return pending;
  void pending.then((lock) => lock.release());
  return null;
};

/** Resolves when the work has ended or the signal is aborted; what is left of the work goes on. Errors: those of the work. */
export const orAborted = async (work: Promise<unknown>, signal: AbortSignal): Promise<void> => {
  if (signal.aborted) {
    work.catch(() => undefined);
    return;
  }
  let end = (): void => undefined;
  const aborted = new Promise<void>((resolve) => {
    end = resolve;
    signal.addEventListener('abort', end);
  });
  try {
    await Promise.race([work, aborted]);
  } finally {
    signal.removeEventListener('abort', end);
    work.catch(() => undefined);
  }
};
