/** Many jobs of one mount: at once, in turn, and those that would be in each other's way. */
import assert from 'node:assert/strict';
import { mkdir, readdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { vdiskfs, vdiskfsJson } from '../support/loaded-vdiskfs.ts';
import { eventually } from '../support/mounted.ts';
import { assertClean, contentSha256, qemuImg } from '../support/qemu-img.ts';
import { run } from '../support/vdiskfs.ts';
import { type ControlMount, controlMount } from './control-mount.ts';
import { verifyingGuest } from './verifying-guest.ts';

const PATIENCE_MS = 90_000;
const DISKS = 10;
const DISK_MIB = 16;
/** Copies in flight have 64 MiB together; the slots of the guests 100; and there is what the collector has not seen yet. */
const MAX_MORE_KIB = 300 << 10;

/** The most that a process has had so far. */
const peakKib = async (pid: number): Promise<number> => {
  const status = await readFile(`/proc/${pid}/status`, 'utf8');
  return Number(/^VmHWM:\s+(?<kib>\d+)/m.exec(status)?.groups?.['kib']);
};

const ok = async (args: readonly string[]): Promise<string> => {
  const done = await vdiskfs(args, { timeoutMs: PATIENCE_MS });
  assert.equal(done.status, 0, done.stderr);
  return done.stdout;
};

/** Content of an image that is not in use, which is sound. */
const contentOf = async (m: ControlMount, image: string): Promise<string> => {
  await assertClean(image);
  return contentSha256(image, join(m.root, 'flat'));
};

const guestFor = async (m: ControlMount, view: string, sizeMib: number): Promise<void> => {
  const done = await verifyingGuest({ ...m, view }, { sizeMib, writtenMib: 4 });
  assert.equal(done.status, 0, done.stderr + done.stdout);
};

/** Overlays of the base that `controlMount` makes. */
const overlays = async (m: ControlMount, names: readonly string[]): Promise<void> => {
  const base = ['-b', 'base.qcow2', '-F', 'qcow2'];
  for (const name of names) {
    await qemuImg(['create', '-q', '-f', 'qcow2', ...base, join(m.images, `${name}.qcow2`)]);
  }
};

test('ten disks over one base move at once, under guests that verify; the copies share their memory', async (t) => {
  const m = await controlMount(t, { sizeMib: DISK_MIB, mounted: false });
  const elsewhere = join(m.root, 'elsewhere');
  await mkdir(elsewhere);
  const names = Array.from({ length: DISKS }, (_, i) => `disk${i}`);
  await overlays(m, names);
  await m.mount();
  const pid = await m.enginePid();
  const before = await peakKib(pid);
  const view = (name: string): string => join(m.mountpoint, `${name}.raw`);
  const target = (name: string): string => join(elsewhere, `${name}.qcow2`);
  await Promise.all(
    names.map(async (name) => {
      const guest = guestFor(m, view(name), DISK_MIB);
      const said = await ok(['mirror', '--complete', view(name), target(name)]);
      assert.equal(said, `job ${name} completed\n${view(name)} goes on over ${target(name)}\n`);
      await guest;
    }),
  );
  const peak = await peakKib(pid);
  t.diagnostic(`${Math.round((peak - before) / 1024)} MiB`);
  assert.ok(peak - before < MAX_MORE_KIB, `${peak - before} KiB more`);
  const content = new Map<string, string>();
  for (const name of names) content.set(name, await contentSha256(view(name), join(m.root, name)));
  await ok(['umount', m.mountpoint]);
  for (const name of names) {
    assert.equal(await contentOf(m, target(name)), content.get(name));
    await assertClean(join(m.images, `${name}.qcow2`));
  }
});

test('images over one base are streamed, mirrored and backed up at the same time', async (t) => {
  const m = await controlMount(t, { sizeMib: 16, mounted: false });
  await overlays(m, ['one', '10', 'three']);
  const base = await contentOf(m, m.base);
  await m.mount();
  const slow = ['--speed', '1M'];
  const view = (name: string): string => join(m.mountpoint, `${name}.raw`);
  await ok(['stream', ...slow, view('one')]);
  assert.equal(await ok(['stream', ...slow, view('10')]), 'job job1 started\n');
  await ok(['mirror', ...slow, view('three'), join(m.root, 'mirror.qcow2')]);
  await ok(['backup', ...slow, m.view, join(m.root, 'backup.qcow2')]);
  await ok(['backup', ...slow, view('base'), join(m.root, 'base.qcow2')]);
  const c = await m.qmp();
  const jobs = (await c.execute('query-block-jobs')) as { readonly device: string }[];
  assert.deepEqual(jobs.map(({ device }) => device).sort(), ['base', 'job1', 'one', 'three', 'vm']);
  await guestFor(m, view('one'), 16);
  for (const { device } of jobs) await c.execute('block-job-set-speed', { device, speed: 0 });
  await c.event('BLOCK_JOB_READY');
  await c.execute('block-job-complete', { device: 'three' });
  await eventually('all end', async () => ((await c.execute('query-jobs')) as []).length === 0);
  const ends = c.events.filter(({ event }) => event === 'BLOCK_JOB_COMPLETED');
  assert.equal(ends.length, jobs.length);
  for (const { data } of ends) assert.equal(data?.['error'], undefined);
  await ok(['umount', m.mountpoint]);
  assert.notEqual(await contentOf(m, join(m.images, 'one.qcow2')), base);
  const copies = [
    join(m.images, '10.qcow2'),
    join(m.root, 'mirror.qcow2'),
    join(m.root, 'base.qcow2'),
  ];
  for (const image of copies) assert.equal(await contentOf(m, image), base, image);
  assert.equal(await contentOf(m, join(m.root, 'backup.qcow2')), await contentOf(m, m.overlay));
});

/** `two` over `one` over `vm` over `base`; each has something of its own. The view stands for the first. */
const chainOfFour = async (m: ControlMount): Promise<void> => {
  for (const [i, name] of ['one.qcow2', 'two.qcow2'].entries()) {
    await ok(['snapshot', '--external', join(m.images, name), m.view]);
    const done = await run('qemu-io', ['-f', 'raw', '-c', `write -P 9 ${i + 2}M 2M`, m.view]);
    assert.match(done.stdout, /wrote/, done.stderr);
  }
};

test('a chain is committed, streamed and committed in turn, while the guest writes', async (t) => {
  const m = await controlMount(t, { sizeMib: 16 });
  await chainOfFour(m);
  const guest = guestFor(m, m.view, 16);
  const image = (name: string): string => join(m.images, name);
  await ok(['commit', '--wait', '--top', image('one.qcow2'), '--base', m.overlay, m.view]);
  await ok(['snapshot', '--external', image('three.qcow2'), m.view]);
  await ok(['stream', '--wait', '--base', m.overlay, m.view]);
  await ok(['snapshot', '--external', image('four.qcow2'), m.view]);
  await ok(['commit', '--wait', m.view]);
  await ok(['stream', '--wait', m.view]);
  await guest;
  const { views } = (await vdiskfsJson(['status', m.mountpoint])) as {
    views: { name: string; chain: { path: string }[] }[];
  };
  const chain = views.find(({ name }) => name === 'vm.raw')?.chain.map(({ path }) => path);
  assert.deepEqual(chain, [image('three.qcow2')]);
  const content = await contentSha256(m.view, join(m.root, 'now'));
  await ok(['umount', m.mountpoint]);
  assert.equal(await contentOf(m, image('three.qcow2')), content);
});

const COPY_TO = '/nowhere/copy.qcow2';
/** What would change a chain of four, or copy it. */
const OTHERS: readonly (readonly [string, object])[] = [
  ['block-stream', { device: 'vm', 'job-id': 'other' }],
  ['block-stream', { device: 'vm', 'job-id': 'other', base: 'base.qcow2' }],
  ['block-commit', { device: 'vm', 'job-id': 'other' }],
  ['block-commit', { device: 'vm', 'job-id': 'other', top: 'vm.qcow2', base: 'base.qcow2' }],
  ['drive-mirror', { device: 'vm', 'job-id': 'other', sync: 'full', target: COPY_TO }],
  ['drive-backup', { device: 'vm', 'job-id': 'other', sync: 'full', target: COPY_TO }],
  ['blockdev-snapshot-sync', { device: 'vm', 'snapshot-file': COPY_TO }],
  ['blockdev-snapshot-internal-sync', { device: 'vm', name: 'tag' }],
];
/** A stream goes on when the image is active again. */
const DEACTIVATE = ['__vdiskfs_set_active', { device: 'vm', active: false }] as const;

test('what would change the chain of a job is refused, with the node and the job', async (t) => {
  const m = await controlMount(t, { sizeMib: 16 });
  await chainOfFour(m);
  const top = join(m.images, 'two.qcow2');
  const before = await readdir(m.images);
  const target = join(m.root, 'copy.qcow2');
  const slow = { device: 'vm', speed: 1000, 'job-id': 'slow' };
  const jobs: readonly (readonly [string, object])[] = [
    ['block-commit', { ...slow, top: 'one.qcow2', base: 'vm.qcow2' }],
    ['block-commit', slow],
    ['drive-mirror', { ...slow, target, sync: 'full' }],
    ['drive-backup', { ...slow, target: join(m.root, 'backup.qcow2'), sync: 'full' }],
  ];
  const c = await m.qmp();
  for (const [command, given] of jobs) {
    await c.execute(command, given);
    const type = command.replace(/.*-/, '');
    const why = new RegExp(`Node '.*' \\(${top}\\) is busy: job 'slow' \\(${type}\\) `);
    for (const [other, others] of [...OTHERS, DEACTIVATE])
      await assert.rejects(c.execute(other, others), why, other);
    c.events.length = 0;
    await c.execute('block-job-cancel', { device: 'slow', force: true });
    await c.event('BLOCK_JOB_CANCELLED');
    await eventually(
      'it is gone',
      async () => ((await c.execute('query-jobs')) as []).length === 0,
    );
  }
  // Part of a chain: what lies between is copied, what lies below is not touched.
  await c.execute('block-stream', { ...slow, base: 'vm.qcow2' });
  for (const [other, others] of OTHERS) {
    await assert.rejects(c.execute(other, others), /busy: job 'slow' \(stream\) uses/, other);
  }
  assert.deepEqual(await readdir(m.images), before);
});

test('of two commands that would change the same chain at the same moment one is refused, and leaves nothing', async (t) => {
  const m = await controlMount(t, { sizeMib: 16 });
  const [one, other] = [await m.qmp(), await m.qmp()];
  const copy = (name: string): string => join(m.images, `${name}.qcow2`);
  const pairs: readonly (readonly [string, object])[] = [
    ['blockdev-snapshot-sync', { device: 'vm', 'snapshot-file': copy('other') }],
    ['drive-mirror', { device: 'vm', target: copy('second'), sync: 'full', 'job-id': 'j' }],
    ['drive-backup', { device: 'vm', target: copy('second'), sync: 'full', 'job-id': 'j' }],
  ];
  for (const [round, [command, given]] of pairs.entries()) {
    const first = { device: 'vm', 'snapshot-file': copy(`first${round}`) };
    const both = await Promise.allSettled([
      one.execute('blockdev-snapshot-sync', first),
      other.execute(command, given),
    ]);
    const refused = both.filter((done) => done.status === 'rejected');
    assert.ok(
      refused.length <= 1,
      JSON.stringify(both.map((done) => String(done.status === 'rejected' && done.reason))),
    );
    for (const { reason } of refused)
      assert.match(String(reason), /has changed meanwhile|is busy|not open/);
    await eventually('no job is left', async () => {
      const jobs = (await one.execute('query-block-jobs')) as { ready: boolean }[];
      if (jobs[0]?.ready === true) await one.execute('block-job-cancel', { device: 'j' });
      return jobs.length === 0;
    });
    const names = await readdir(m.images);
    assert.equal(names.includes(`first${round}.qcow2`), both[0].status === 'fulfilled');
    const copied = round === 0 ? 'other.qcow2' : 'second.qcow2';
    assert.equal(names.includes(copied), both[1].status === 'fulfilled');
    // The view may stand on it now.
    if (round > 0) await rm(copy('second'), { force: true });
    const done = await run('qemu-io', ['-f', 'raw', '-c', `write -P ${round + 50} 3M 1M`, m.view]);
    assert.match(done.stdout, /wrote/, done.stderr);
  }
  const content = await contentSha256(m.view, join(m.root, 'now'));
  await ok(['umount', m.mountpoint]);
  await m.mount();
  assert.equal(await contentSha256(m.view, join(m.root, 'now')), content);
});
