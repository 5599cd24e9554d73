/** Waiting for the last close of a file, of which a kernel tells a moment later. */
import { setTimeout as sleep } from 'node:timers/promises';

const RELEASE_WAIT_MS = 2000;
const RELEASE_POLL_MS = 20;

/** Whether it becomes free within 2 s. */
export const released = async (isFree: () => boolean): Promise<boolean> => {
  for (const end = performance.now() + RELEASE_WAIT_MS; !isFree(); ) {
    if (performance.now() > end) return false;
    await sleep(RELEASE_POLL_MS);
  }
  return true;
};
