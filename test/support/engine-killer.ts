/** Kills the engines of a mount at random moments, while something else goes on in it. */
import { setTimeout as sleep } from 'node:timers/promises';
import { seededRandom } from '../../src/base/random.ts';
import { extendedAttribute } from '../../src/os/linux.ts';
import type { Mounted } from './mounted.ts';
import { SEED } from './run-parameters.ts';

/** An engine lives for this long at most, once it serves. */
const LONGEST_LIFE_MS = 800;

/** SIGKILL to `kills` engines, each a random while after it has begun to serve. */
export const killEngines = async (mounted: Mounted, kills: number): Promise<void> => {
  const random = seededRandom(SEED);
  let before: string | null = null;
  for (let kill = 0; kill < kills; kill++) {
    const pid = await engineAfter(mounted, before);
    await sleep(random.below(LONGEST_LIFE_MS));
    process.kill(Number(pid), 'SIGKILL');
    before = pid;
  }
  // What comes next is not held up by the last pause.
  await engineAfter(mounted, before);
};

const engineAfter = async (mounted: Mounted, before: string | null): Promise<string> => {
  for (;;) {
    const pid = await extendedAttribute(mounted.mountpoint, 'user.vdiskfs.pid');
    if (pid !== null && pid !== before) return pid;
    await sleep(20);
  }
};

/** Does something again and again as long as the killing goes on, once at least; how often. */
export const whileKilling = async (
  mounted: Mounted,
  kills: number,
  work: (turn: number) => Promise<void>,
): Promise<number> => {
  let isKilling = true;
  const killing = killEngines(mounted, kills).finally(() => {
    isKilling = false;
  });
  let turn = 0;
  try {
    do await work(turn++);
    while (isKilling);
  } finally {
    isKilling = false;
    await killing;
  }
  return turn;
};
