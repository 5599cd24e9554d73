/**
 * Calls to the host that may not return, of a mount that hangs, say. The process ends only when they do, unless it is made to.
 */
let outstanding = 0;

/** Counts a call until it returns. */
export const mayBeLeft = <T>(call: Promise<T>): Promise<T> => {
  outstanding++;
  return call.finally(() => {
    outstanding--;
  });
};

/** One has not returned. */
export const isCallLeft = (): boolean => outstanding > 0;
