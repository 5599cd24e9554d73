/** What a mount, or an engine, says of jobs that had ended before it. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { createLog, silentLog } from '../../../src/base/log.ts';
import type { ControlContext } from '../../../src/control/context.ts';
import { takeUpJobs } from '../../../src/daemon/job-take-up.ts';
import { CANCELLED_TEXT, JobError } from '../../../src/job/job-error.ts';
import { JobList } from '../../../src/job/job-list.ts';
import { type JobRecord, JobStore } from '../../../src/job/job-store.ts';
import { scratchDirectory } from '../../support/scratch.ts';

const record = (
  command: string,
  error: string | null,
  given: Readonly<Record<string, unknown>> = {},
): JobRecord => ({
  id: 'vm',
  command,
  arguments: { device: 'vm', ...given },
  imagePath: '/images/vm.qcow2',
  paused: false,
  result: { error, offset: 10, lengthBytes: 10 },
});

const BACKUP = { sync: 'full', target: '/copies/vm.qcow2' };

const CASES: readonly (readonly [JobRecord, string])[] = [
  [record('block-stream', null), 'info vm: had ended'],
  [record('drive-backup', null, BACKUP), 'info vm: had ended'],
  [record('drive-mirror', 'a bad block'), 'error vm: had failed: a bad block'],
  [record('block-commit', CANCELLED_TEXT), 'info vm: was cancelled'],
  [
    record('drive-backup', CANCELLED_TEXT, BACKUP),
    "warning vm: was cancelled when the mount before ended: '/copies/vm.qcow2' is no whole backup",
  ],
  [
    record('drive-backup', CANCELLED_TEXT, { ...BACKUP, sync: 'none' }),
    "info vm: had ended with the mount before: '/copies/vm.qcow2' is complete",
  ],
];

test('a job whose start is overtaken by the end of the mount is left to the next one', async (t) => {
  const directory = join(await scratchDirectory(t), 'state');
  const kept = { ...record('block-commit', null), result: null };
  const store = new JobStore(directory, silentLog);
  store.keep(kept);
  await store.settled();
  const lines: string[] = [];
  const log = createLog({ level: 'info', write: (line) => lines.push(line), journald: false });
  const jobs = new JobList(silentLog);
  const open = async (): Promise<never> => {
    await jobs.close({ mountEnds: true });
    throw new JobError('The mount is ending');
  };
  const view = { isHeld: false, pin: () => () => undefined, open };
  const { imagePath } = kept;
  const devices = async () => [{ name: 'vm', path: imagePath, originalPath: imagePath, view }];
  await takeUpJobs({ jobs, store, devices } as unknown as ControlContext, log);
  await store.settled();
  assert.deepEqual(lines, []);
  assert.deepEqual(await new JobStore(directory, silentLog).load(), [kept]);
});

test('a job that had ended, and that nobody has to dismiss, is told of by its result, and not begun again', async (t) => {
  const directory = join(await scratchDirectory(t), 'state');
  for (const [kept, said] of CASES) {
    const before = new JobStore(directory, silentLog);
    before.keep(kept);
    await before.settled();
    const lines: string[] = [];
    const log = createLog({ level: 'info', write: (line) => lines.push(line), journald: false });
    const store = new JobStore(directory, silentLog);
    const jobs = new JobList(silentLog);
    const keptBitmaps = { giveUpRest: () => undefined };
    const devices = async () => [];
    const context = { jobs, store, keptBitmaps, devices } as unknown as ControlContext;
    await takeUpJobs(context, log);
    assert.deepEqual(lines, [`${said}\n`]);
    assert.deepEqual(jobs.all, []);
    await store.settled();
    assert.equal(await new JobStore(directory, silentLog).hasRecords(), false);
  }
});
