import { setTimeout as sleep } from 'node:timers/promises';

/** Waits until it holds, `limitMs` at most; for what this process learns by itself. */
export const until = async (
  what: string,
  holds: () => boolean,
  limitMs = 10_000,
): Promise<void> => {
  for (const end = Date.now() + limitMs; !holds(); ) {
    if (Date.now() > end) throw new Error(`not within ${limitMs} ms: ${what}`);
    await sleep(5);
  }
};
