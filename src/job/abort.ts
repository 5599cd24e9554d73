/** Waits that end when nobody wants their result any more. */

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
