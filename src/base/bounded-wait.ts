/** Waits for what may never end: a host, a disk or a server that does not answer. */

/** What is given up waits so long for a side that may not answer any more. */
export const GIVE_UP_MS = 5000;

/** Whether the work ended in time; what is left of it goes on. Never rejects. */
export const endsWithin = async (work: Promise<unknown>, limitMs: number): Promise<boolean> => {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<false>((resolve) => {
    timer = setTimeout(() => resolve(false), limitMs);
  });
  const ended = work.then(
    () => true as const,
    () => true as const,
  );
  try {
    return await Promise.race([ended, late]);
  } finally {
    clearTimeout(timer);
  }
};
