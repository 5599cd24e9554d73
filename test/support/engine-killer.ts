/** Kills the engines of a mount at random moments, while something else goes on in it. */
import { setTimeout as sleep } from 'node:timers/promises';
import { seededRandom } from '../../src/base/random.ts';
import { extendedAttribute } from '../../src/os/mounts.ts';
import type { Mounted } from './mounted.ts';
import { SEED } from './run-parameters.ts';

/** An engine lives for this long at most, once it serves: the pauses between deaths grow to 10 s. */
const LONGEST_LIFE_MS = 800;

export interface Killing {
  readonly kills: number;
  /** See `LONGEST_LIFE_MS`. Engines that live for 5 s are followed by the next at once. */
  readonly longestLifeMs?: number;
}

/** SIGKILL to engines, each a random while after it has begun to serve. */
export const killEngines = async (
  mounted: Mounted,
  { kills, longestLifeMs = LONGEST_LIFE_MS }: Killing,
): Promise<void> => {
  const random = seededRandom(SEED);
  let before: string | null = null;
  for (let killed = 0; killed < kills; ) {
    const pid = await engineAfter(mounted, before);
    await sleep(random.below(longestLifeMs));
    if (isKilled(Number(pid))) killed++;
    before = pid;
  }
  // What comes next is not held up by the last pause.
  await engineAfter(mounted, before);
};

/** False: it has ended before, a careful one that gave its place to another. */
const isKilled = (pid: number): boolean => {
  try {
    return process.kill(pid, 'SIGKILL');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ESRCH') return false;
    throw error;
  }
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
  killing: Killing,
  work: (turn: number) => Promise<void>,
): Promise<number> => {
  let isKilling = true;
  const killed = killEngines(mounted, killing).finally(() => {
    isKilling = false;
  });
  let turn = 0;
  try {
    do await work(turn++);
    while (isKilling);
  } finally {
    isKilling = false;
    await killed;
  }
  return turn;
};
