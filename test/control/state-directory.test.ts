/** Jobs and the state directory: a help for what comes later, never a need; and what a mount that ends does with them. */
import assert from 'node:assert/strict';
import { mkdir, readdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { exists } from '../support/host-files.ts';
import { eventually } from '../support/mounted.ts';
import { assertClean, contentSha256, qemuImgJson } from '../support/qemu-img.ts';
import { run, vdiskfs } from '../support/vdiskfs.ts';
import { type ControlMount, controlMount } from './control-mount.ts';

const PATIENCE_MS = 60_000;

interface Job {
  readonly device: string;
  readonly type: string;
  readonly paused: boolean;
  readonly offset: number;
}

const jobsOf = async (m: ControlMount): Promise<readonly Job[]> => {
  const connection = await m.qmp();
  const jobs = (await connection.execute('query-block-jobs')) as readonly Job[];
  connection.close();
  return jobs;
};

const untilNoJobs = (m: ControlMount): Promise<void> =>
  eventually('the jobs end', async () => (await jobsOf(m)).length === 0, PATIENCE_MS);

const backingOf = async (image: string): Promise<string | undefined> =>
  ((await qemuImgJson('info', ['-U', image])) as { 'backing-filename'?: string })[
    'backing-filename'
  ];

/** A guest that goes on writing and reading, with no error. */
const guestWorks = async (m: ControlMount): Promise<void> => {
  const args = [
    'if=/dev/urandom',
    `of=${m.view}`,
    'bs=64k',
    'count=8',
    'seek=900',
    'conv=notrunc,fsync',
  ];
  const done = await run('dd', args);
  assert.equal(done.status, 0, done.stderr);
};

test('a state directory that is full, or removed, stops no job and no I/O, nor an engine that dies', async (t) => {
  const m = await controlMount(t, { mounted: false });
  await mkdir(m.stateDirectory);
  const small = ['mount', '-t', 'tmpfs', '-o', 'size=4k,nr_inodes=2', 'none', m.stateDirectory];
  assert.equal((await run('sh', ['-c', small.join(' ')])).status, 0);
  m.cleanup.after(async () => void (await run('umount', ['-l', m.stateDirectory])));
  assert.equal((await run('sh', ['-c', `echo full > ${m.stateDirectory}/filler`])).status, 0);
  await m.mount();
  const before = await contentSha256(m.view, join(m.root, 'before'));
  assert.equal((await vdiskfs(['stream', '--speed', '1M', m.view])).status, 0);
  assert.equal((await jobsOf(m)).length, 1, 'it works although it is not kept');
  assert.deepEqual(await readdir(m.stateDirectory), ['filler']);
  const engine = await m.enginePid();
  process.kill(engine, 'SIGKILL');
  await eventually('another serves', async () => (await m.enginePid()) !== engine, PATIENCE_MS);
  assert.deepEqual(await jobsOf(m), [], 'no engine knows of it any more');
  assert.equal(await contentSha256(m.view, join(m.root, 'after')), before);
  await guestWorks(m);
  assert.equal((await run('umount', ['-l', m.stateDirectory])).status, 0);
  await rm(m.stateDirectory, { recursive: true });
  assert.equal((await vdiskfs(['stream', '--speed', '1M', m.view])).status, 0);
  await eventually('it is kept', () => exists(join(m.stateDirectory, 'vm.job')));
  await rm(m.stateDirectory, { recursive: true });
  await guestWorks(m);
  assert.equal((await vdiskfs(['job', 'speed', m.view, '0'])).status, 0);
  await untilNoJobs(m);
  assert.equal(await backingOf(m.overlay), undefined, 'and has done its work');
  assert.equal((await vdiskfs(['umount', m.mountpoint])).status, 0);
  await assertClean(m.overlay);
});

test('a mount that ends keeps a stream as it was, paused or not, and cancels a backup', async (t) => {
  const m = await controlMount(t);
  assert.equal((await vdiskfs(['stream', '--speed', '1M', m.view])).status, 0);
  assert.equal((await vdiskfs(['job', 'pause', m.view])).status, 0);
  const base = join(m.mountpoint, 'base.raw');
  const target = join(m.root, 'copy.qcow2');
  const backup = await vdiskfs(['backup', '--speed', '1M', base, target]);
  assert.equal(backup.status, 0, backup.stderr);
  assert.deepEqual(
    (await jobsOf(m)).map(({ device, type, paused }) => ({ device, type, paused })),
    [
      { device: 'vm', type: 'stream', paused: true },
      { device: 'base', type: 'backup', paused: false },
    ],
  );
  await sleep(300);
  assert.equal((await vdiskfs(['umount', m.mountpoint])).status, 0);
  assert.deepEqual(await readdir(m.stateDirectory), ['base.job', 'vm.job']);
  assert.equal(
    (JSON.parse(await readFile(join(m.stateDirectory, 'vm.job'), 'utf8')) as Job).paused,
    true,
  );
  await m.mount(['--no-resume']);
  assert.deepEqual(await jobsOf(m), []);
  assert.equal((await vdiskfs(['umount', m.mountpoint])).status, 0);
  await m.mount();
  const [job, ...others] = await jobsOf(m);
  assert.deepEqual([job?.device, job?.paused, others.length], ['vm', true, 0]);
  assert.equal((await vdiskfs(['umount', m.mountpoint])).status, 0);
});
