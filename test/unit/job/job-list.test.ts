/** What the end of a mount makes of its jobs. */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { setTimeout as sleep, setImmediate as turn } from 'node:timers/promises';
import { GIVE_UP_MS } from '../../../src/base/bounded-wait.ts';
import { createLog, silentLog } from '../../../src/base/log.ts';
import { JobList, type StartOptions } from '../../../src/job/job-list.ts';
import type { JobWork } from '../../../src/job/job-work.ts';

const FIELDS = {
  type: 'stream',
  speed: 0,
  autoFinalize: true,
  autoDismiss: true,
  nodes: [],
} as const;

/** Goes on for ever, and takes its time to end. */
const slowToEnd = (end: Promise<void>): JobWork => ({
  run: async (control) => {
    try {
      for (;;) {
        await control.pausePoint();
        await sleep(1);
      }
    } finally {
      await end;
    }
  },
});

const gate = (): { readonly opened: Promise<void>; readonly open: () => void } => {
  let open = (): void => undefined;
  const opened = new Promise<void>((resolve) => {
    open = resolve;
  });
  return { opened, open };
};

/** Jobs, and what the log says of them. */
const logged = (): { readonly jobs: JobList; readonly lines: readonly string[] } => {
  const lines: string[] = [];
  const log = createLog({ level: 'info', write: (line) => lines.push(line), journald: false });
  return { jobs: new JobList(log), lines };
};

test('a mount that ends keeps what its jobs need to go on, but not what a user has cancelled', async () => {
  const jobs = new JobList(silentLog);
  const forgotten: string[] = [];
  const { opened, open } = gate();
  const begin = (id: string) =>
    jobs.start({
      ...FIELDS,
      id,
      work: slowToEnd(opened),
      dismissed: (job) => forgotten.push(job.id),
    });
  begin('works');
  const cancelled = begin('cancelled');
  await sleep(5);
  cancelled.cancel({ force: true });
  const closed = jobs.close({ mountEnds: true });
  open();
  await closed;
  assert.deepEqual(forgotten, ['cancelled']);
  assert.throws(() => begin('late'), /The mount is ending/);
});

/** Closes the list while a job is at one of its last steps, and lets that step end then. */
const closedAt = async (
  step: 'prepare' | 'kept',
  type: StartOptions['type'],
): Promise<{
  readonly kept: unknown;
  readonly awaited: boolean;
  readonly forgotten: boolean;
  readonly line: string;
}> => {
  const { jobs, lines } = logged();
  const [reached, ended] = [gate(), gate()];
  const stay = async (): Promise<void> => {
    reached.open();
    await ended.opened;
  };
  let kept: unknown = null;
  let awaited = false;
  let forgotten = false;
  jobs.start({
    ...FIELDS,
    id: 'vm',
    type,
    work: {
      run: async (control) => control.progress(10, 10),
      ...(step === 'prepare' ? { prepare: stay } : {}),
    },
    changed: ({ result }) => {
      kept = result;
    },
    kept: async () => {
      awaited = true;
      if (step === 'kept') await stay();
    },
    dismissed: () => {
      forgotten = true;
    },
  });
  await reached.opened;
  const closing = jobs.close({ mountEnds: true });
  ended.open();
  await closing;
  await turn();
  return { kept, awaited, forgotten, line: lines.join('') };
};

test('a job that has come to its end when the mount ends has completed: the next mount does not go on with it', async () => {
  const completed = {
    kept: { error: null, offset: 10, lengthBytes: 10 },
    awaited: true,
    line: 'info vm: completed, stream: 10 of 10 bytes\n',
  };
  for (const step of ['prepare', 'kept'] as const) {
    assert.deepEqual(await closedAt(step, 'stream'), { ...completed, forgotten: true }, step);
  }
  const line = completed.line.replace('stream', 'backup');
  // Cancelled because the mount ends, but too late: its result is there for the next mount.
  assert.deepEqual(await closedAt('prepare', 'backup'), { ...completed, line, forgotten: false });
  assert.deepEqual(await closedAt('kept', 'backup'), { ...completed, line, forgotten: true });
});

/** Lets time pass at once for what waits for a disk that hangs. */
const pass = async (t: TestContext, waitMs: number): Promise<void> => {
  await turn();
  t.mock.timers.tick(waitMs);
  for (let i = 0; i < 5; i++) await turn();
};

test('a result that is not kept in time, because a disk hangs, is told all the same, and a mount ends', async (t) => {
  const { jobs, lines } = logged();
  t.mock.timers.enable({ apis: ['setTimeout'] });
  const never = new Promise<void>(() => undefined);
  const job = jobs.start({
    ...FIELDS,
    id: 'vm',
    work: { run: async () => undefined },
    kept: () => never,
  });
  await pass(t, GIVE_UP_MS - 1);
  assert.equal(job.status, 'pending');
  let closed = false;
  const closing = jobs.close({ mountEnds: true }).then(() => {
    closed = true;
  });
  await pass(t, 1);
  assert.ok(closed, 'in time');
  await closing;
  assert.equal(job.status, 'null');
  assert.match(lines.join(''), /warning vm: its result is not kept after 5 s/);
  assert.match(lines.join(''), /info vm: completed/);
});

test('a job that ends for a later engine has no result to keep, and waits for no disk', async (t) => {
  const { jobs, lines } = logged();
  t.mock.timers.enable({ apis: ['setTimeout'] });
  let asked = 0;
  jobs.start({
    ...FIELDS,
    id: 'vm',
    work: {
      run: async (control) => {
        for (;;) {
          await control.pausePoint();
          await turn();
        }
      },
    },
    kept: () => {
      asked++;
      return new Promise<void>(() => undefined);
    },
  });
  await jobs.close({ mountEnds: false });
  assert.equal(asked, 0);
  assert.equal(lines.join(''), 'info vm: the next engine goes on, stream: 0 of 0 bytes\n');
});
