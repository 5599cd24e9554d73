import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep, setImmediate as turn } from 'node:timers/promises';
import { BlockError } from '../../../src/base/block-error.ts';
import { silentLog } from '../../../src/base/log.ts';
import { orAborted } from '../../../src/job/abort.ts';
import type { Job } from '../../../src/job/job.ts';
import { JobError } from '../../../src/job/job-error.ts';
import { JobList } from '../../../src/job/job-list.ts';
import { canFollow, isAllowed } from '../../../src/job/job-state.ts';
import type { JobControl, JobWork } from '../../../src/job/job-work.ts';
import { RateLimit } from '../../../src/job/rate-limit.ts';

interface Heard {
  readonly name: string;
  readonly data: Readonly<Record<string, unknown>>;
}

const started = (
  work: JobWork,
  options: { autoFinalize?: boolean; autoDismiss?: boolean; speed?: number } = {},
): { job: Job; jobs: JobList; heard: Heard[]; sequence: () => string[] } => {
  const jobs = new JobList(silentLog);
  const heard: Heard[] = [];
  jobs.listen((name, data) => heard.push({ name, data }));
  const job = jobs.start({
    id: 'vm',
    type: 'stream',
    speed: options.speed ?? 0,
    autoFinalize: options.autoFinalize ?? true,
    autoDismiss: options.autoDismiss ?? true,
    nodes: [],
    work,
  });
  const sequence = (): string[] =>
    heard.map(({ name, data }) => (name === 'JOB_STATUS_CHANGE' ? String(data['status']) : name));
  return { job, jobs, heard, sequence };
};

/** Steps until it is cancelled, or told to end. */
const endless = (until: { done: boolean }): JobWork => ({
  run: async (control) => {
    while (!until.done) {
      await control.pausePoint();
      await sleep(1);
    }
  },
});

test('many waits that a cancel would end are no leak', async (t) => {
  const warnings: Error[] = [];
  const hear = (warning: Error): void => void warnings.push(warning);
  process.on('warning', hear);
  t.after(() => process.off('warning', hear));
  const { job } = started({
    run: async ({ signal }) => {
      await Promise.all(Array.from({ length: 20 }, () => orAborted(turn(), signal)));
    },
  });
  await job.concluded;
  await turn();
  assert.deepEqual(warnings, []);
});

test('a job that succeeds goes through the states and events that QEMU sends, in its order', async () => {
  const { job, jobs, sequence, heard } = started({
    run: async (control) => control.progress(10, 10),
  });
  await job.concluded;
  assert.deepEqual(sequence(), [
    'created',
    'running',
    'waiting',
    'pending',
    'BLOCK_JOB_COMPLETED',
    'concluded',
    'null',
  ]);
  const completed = heard.find((h) => h.name === 'BLOCK_JOB_COMPLETED');
  assert.deepEqual(completed?.data, {
    type: 'stream',
    device: 'vm',
    len: 10,
    offset: 10,
    speed: 0,
  });
  assert.equal(jobs.get('vm'), null, 'dismissed by itself');
});

test('a mirror-like job is ready, completes, and only then waits and pivots', async () => {
  let pivoted = '';
  const { job, sequence } = started({
    run: async (control) => {
      pivoted = await control.ready(async () => 10);
    },
  });
  await turn();
  while (job.status !== 'ready') await sleep(1);
  job.complete();
  assert.throws(() => job.complete(), /cannot be completed/);
  await job.concluded;
  assert.equal(pivoted, 'complete');
  assert.deepEqual(sequence().slice(1, 4), ['running', 'ready', 'BLOCK_JOB_READY']);
  assert.deepEqual(sequence().slice(-3), ['BLOCK_JOB_COMPLETED', 'concluded', 'null']);
});

test('a cancel that is not forced ends a ready job as completed, a forced one as cancelled', async () => {
  for (const force of [false, true]) {
    const { job, sequence } = started({
      run: async (control) => {
        assert.equal(await control.ready(async () => 10), 'stop');
      },
    });
    while (job.status !== 'ready') await sleep(1);
    job.cancel({ force });
    await job.concluded;
    const outcome = force ? 'BLOCK_JOB_CANCELLED' : 'BLOCK_JOB_COMPLETED';
    assert.ok(sequence().includes(outcome), sequence().join(' '));
  }
});

test('a cancelled job aborts, and a paused one is woken for it', async () => {
  const { job, sequence } = started(endless({ done: false }));
  job.pause();
  while (job.status !== 'paused') await sleep(1);
  assert.throws(() => job.pause(), /already paused/);
  assert.equal(job.blockJobInfo().busy, false);
  job.cancel({ force: false });
  await job.concluded;
  assert.deepEqual(sequence().slice(2), [
    'paused',
    'running',
    'aborting',
    'BLOCK_JOB_CANCELLED',
    'concluded',
    'null',
  ]);
});

test('pause and resume: nothing is done in between', async () => {
  const until = { done: false };
  let steps = 0;
  const { job } = started({
    run: async (control) => {
      while (!until.done) {
        await control.pausePoint();
        steps++;
        await sleep(1);
      }
    },
  });
  await sleep(10);
  job.pause();
  while (job.status !== 'paused') await sleep(1);
  const before = steps;
  await sleep(20);
  assert.equal(steps, before);
  job.resume();
  assert.throws(() => job.resume(), /not paused/);
  until.done = true;
  await job.concluded;
});

test('auto-finalize off waits in pending, auto-dismiss off in concluded with the result', async () => {
  let prepared = false;
  const { job, jobs, sequence } = started(
    {
      run: async () => undefined,
      prepare: async () => {
        prepared = true;
      },
    },
    { autoFinalize: false, autoDismiss: false },
  );
  while (job.status !== 'pending') await sleep(1);
  assert.equal(prepared, false);
  assert.ok(sequence().includes('BLOCK_JOB_PENDING'));
  assert.throws(() => job.dismiss(), /state 'pending' cannot accept command verb 'dismiss'/);
  job.finalize();
  await job.concluded;
  assert.equal(prepared, true);
  assert.equal(jobs.get('vm')?.status, 'concluded');
  job.dismiss();
  assert.equal(jobs.get('vm'), null);
});

const refusalOf = (verb: () => void): string => {
  try {
    verb();
    return 'is allowed';
  } catch (error) {
    return error instanceof JobError ? error.message : String(error);
  }
};

for (const autoDismiss of [true, false]) {
  const dismissal = autoDismiss ? 'that goes by itself' : 'that is to be dismissed';
  test(`a result ${dismissal} survives the engine before anybody hears of it, and is settled meanwhile`, async () => {
    const jobs = new JobList(silentLog);
    const seen: unknown[] = [];
    const refusals: string[] = [];
    jobs.listen((name, data) => {
      const { status } = data;
      if (name !== 'JOB_STATUS_CHANGE') seen.push(name);
      else if (status === 'concluded' || status === 'null') seen.push(status);
    });
    let control: JobControl | null = null;
    const job: Job = jobs.start({
      id: 'vm',
      type: 'stream',
      speed: 0,
      autoFinalize: true,
      autoDismiss,
      nodes: [],
      work: {
        run: async (given) => {
          control = given;
          given.progress(10, 20);
        },
      },
      changed: ({ status, result }) => {
        if (result !== null && status === 'pending') seen.push(result);
      },
      kept: async () => {
        await sleep(5);
        seen.push('kept');
        for (const verb of [() => job.cancel({ force: true }), () => job.finalize()]) {
          refusals.push(refusalOf(verb));
        }
        // Of a copy that was given up, and ends late.
        control?.progress(20, 30);
      },
      dismissed: () => seen.push('dismissed'),
    });
    await job.concluded;
    assert.equal(job.isCancelled, false);
    const why = 'it has ended, and its result is being kept';
    const refused = (verb: string): string =>
      `Job 'vm' in state 'pending' cannot accept command verb '${verb}': ${why}`;
    assert.deepEqual(refusals, ['cancel', 'finalize'].map(refused));
    const result = { error: null, offset: 10, lengthBytes: 20 };
    assert.deepEqual(job.result, result);
    const { offset, len } = job.blockJobInfo();
    assert.deepEqual([offset, len], [10, 20], 'and is what everybody is told');
    const told = [result, 'kept', 'BLOCK_JOB_COMPLETED', 'concluded'];
    assert.deepEqual(seen, autoDismiss ? [...told, 'null', 'dismissed'] : told);
    if (!autoDismiss) job.dismiss();
    assert.equal(jobs.get('vm'), null);
  });
}

test('an error of the work, of its end, or of what it gives back is the error of the job', async () => {
  const fail = async (): Promise<void> => {
    throw new BlockError({ kind: 'io', message: 'a bad block' });
  };
  const works: JobWork[] = [
    { run: fail },
    { run: async () => undefined, prepare: fail },
    { run: async () => undefined, clean: fail },
  ];
  for (const [index, work] of works.entries()) {
    const { job, heard } = started(work, { autoDismiss: false });
    await job.concluded;
    assert.equal(job.error, 'a bad block', `work ${index}`);
    const completed = heard.find((h) => h.name === 'BLOCK_JOB_COMPLETED');
    assert.equal(completed?.data['error'], 'a bad block');
  }
});

test('error policies: report ends, ignore goes on, stop pauses, enospc pauses only for a full disk', () => {
  const actions: string[] = [];
  let control: JobControl | null = null;
  const { job } = started({
    run: async (given) => {
      control = given;
      await new Promise(() => undefined);
    },
  });
  return turn().then(() => {
    const full = new BlockError({ kind: 'no-space', message: 'full' });
    const broken = new BlockError({ kind: 'io', message: 'broken' });
    for (const policy of ['report', 'ignore', 'enospc', 'auto'] as const) {
      actions.push(control?.failed(broken, 'write', policy) ?? '');
    }
    assert.deepEqual(actions, ['report', 'ignore', 'report', 'report']);
    assert.equal(control?.failed(full, 'write', 'enospc'), 'stop');
    assert.equal(job.blockJobInfo()['io-status'], 'nospace');
    assert.equal(job.blockJobInfo().paused, true);
    job.resume();
    assert.equal(job.blockJobInfo()['io-status'], 'ok');
  });
});

test('progress never goes backwards', async () => {
  const { job } = started(
    {
      run: async (control) => {
        control.progress(50, 100);
        control.progress(20, 80);
      },
    },
    { autoDismiss: false },
  );
  await job.concluded;
  const { offset, len } = job.blockJobInfo();
  assert.deepEqual([offset, len], [50, 100]);
});

test('two jobs never need the same node, nor have the same id, nor an id that is not well formed', async () => {
  const until = { done: false };
  const { jobs, job } = started(endless(until));
  const fields = { type: 'stream', speed: 0, autoFinalize: true, autoDismiss: true } as const;
  const start = (id: string) => jobs.start({ ...fields, id, nodes: [], work: endless(until) });
  assert.throws(() => start('vm'), /Job ID 'vm' already in use/);
  for (const id of ['', '1a', 'a b', 'a@b', 'ä']) {
    assert.throws(() => start(id), /Invalid job ID/, id);
  }
  assert.equal(jobs.idFor(null, '10'), 'job1');
  assert.equal(jobs.idFor(null, 'disk-1.x_y'), 'disk-1.x_y');
  until.done = true;
  await job.concluded;
});

test("the table of states is QEMU's: what is allowed where", () => {
  assert.equal(canFollow('created', 'null'), true);
  assert.equal(canFollow('paused', 'aborting'), false);
  assert.equal(canFollow('pending', 'concluded'), true);
  for (const status of ['waiting', 'pending', 'aborting', 'concluded', 'null'] as const) {
    assert.equal(isAllowed('pause', status), false, status);
    assert.equal(isAllowed('set-speed', status), false, status);
  }
  assert.equal(isAllowed('cancel', 'pending'), true);
  assert.equal(isAllowed('cancel', 'aborting'), false);
});

test('a rate limit lets as many bytes through as it says, whatever the pieces', () => {
  for (const piece of [1000, 4096, 65536]) {
    let now = 0;
    const limit = new RateLimit(() => now);
    limit.bytesPerSecond = 100_000;
    let bytes = 0;
    while (now < 10_000) {
      const delay = limit.delayMs();
      if (delay > 0) now += delay;
      else {
        limit.use(piece);
        bytes += piece;
      }
    }
    assert.ok(Math.abs(bytes - 1_000_000) <= 10_000 + 2 * piece, `${bytes} in pieces of ${piece}`);
  }
});
