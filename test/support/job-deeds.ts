/** What people do to a job at any moment, and how it is brought to its end. */
import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import fc from 'fast-check';
import type { Job } from '../../src/job/job.ts';
import { JobError } from '../../src/job/job-error.ts';
import type { JobStatus } from '../../src/job/job-state.ts';

const END_MS = 30_000;
const READY_MS = 500;
const TURN_MS = 5;

/** Ready, or past it. */
const WAITED_FOR: ReadonlySet<JobStatus> = new Set([
  'ready',
  'standby',
  'waiting',
  'pending',
  'aborting',
  'concluded',
  'null',
]);

export type Deed =
  | 'pause'
  | 'resume'
  | 'slow'
  | 'fast'
  | 'cancel'
  | 'force'
  | 'complete'
  | 'write-blocking'
  | 'wait-ready';

export interface TimedDeed {
  readonly deed: Deed;
  readonly afterMs: number;
}

export type Ending = 'cancel' | 'complete';

export const timedDeeds: fc.Arbitrary<TimedDeed[]> = fc.array(
  fc.record({
    deed: fc.constantFrom<Deed>(
      'pause',
      'resume',
      'slow',
      'fast',
      'cancel',
      'force',
      'complete',
      'complete',
      'write-blocking',
      'wait-ready',
      'wait-ready',
    ),
    afterMs: fc.nat(25),
  }),
  { maxLength: 10 },
);

export const endings = fc.constantFrom<Ending>('cancel', 'complete', 'complete');

const ACTS: Readonly<Record<Deed, (job: Job) => void>> = {
  pause: (job) => job.pause(),
  resume: (job) => job.resume(),
  slow: (job) => job.setSpeed(3 << 20),
  fast: (job) => job.setSpeed(0),
  cancel: (job) => job.cancel({ force: false }),
  force: (job) => job.cancel({ force: true }),
  complete: (job) => job.complete(),
  'write-blocking': (job) => job.change({ copyMode: 'write-blocking' }),
  'wait-ready': () => undefined,
};

const act = (job: Job, deed: Deed): void => {
  try {
    ACTS[deed](job);
  } catch (error) {
    // Not in this state.
    assert.ok(error instanceof JobError);
  }
};

/** One after the other. */
export const play = async (job: Job, deeds: readonly TimedDeed[]): Promise<void> => {
  for (const { deed, afterMs } of deeds) {
    await sleep(afterMs);
    if (deed === 'wait-ready') {
      act(job, 'resume');
      for (const end = Date.now() + READY_MS; Date.now() < end; await sleep(2)) {
        if (WAITED_FOR.has(job.status)) break;
      }
    }
    act(job, deed);
  }
};

/** Whatever state it is in: goes on until it has ended. Throws after 30 s in which this process could run. */
export const drive = async (job: Job, ending: Ending): Promise<void> => {
  for (let turns = 0; job.status !== 'concluded'; turns++) {
    // Not by the clock: on a host that has no time for this process nothing ends.
    if (turns * TURN_MS > END_MS)
      throw new Error(`it does not end: ${JSON.stringify(job.blockJobInfo())}`);
    act(job, 'resume');
    act(job, 'fast');
    act(job, ending);
    if (job.status === 'pending') {
      try {
        job.finalize();
      } catch {
        // It has begun to end.
      }
    }
    await Promise.race([job.concluded, sleep(TURN_MS)]);
  }
};
