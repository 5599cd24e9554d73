/** Backups of a mount: what QEMU finds in them, what guests see meanwhile, and what survives the engine. */
import assert from 'node:assert/strict';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { eventually } from '../support/mounted.ts';
import { assertClean, contentSha256, qemuImg, qemuImgJson } from '../support/qemu-img.ts';
import { run, vdiskfs, vdiskfsJson } from '../support/vdiskfs.ts';
import { type ControlMount, controlMount } from './control-mount.ts';

const MIB = 1 << 20;
const SIZE_MIB = 24;

const write = async (
  m: ControlMount,
  offset: number,
  bytes: number,
  byte: number,
): Promise<void> => {
  const file = await open(m.view, 'r+');
  try {
    await file.write(Buffer.alloc(bytes, byte), 0, bytes, offset);
  } finally {
    await file.close();
  }
};

const backup = async (...args: string[]): Promise<void> => {
  const done = await vdiskfs(['backup', '--wait', ...args]);
  assert.equal(done.status, 0, done.stderr);
  assert.equal(done.stdout, 'job vm completed\n');
};

/** As the guest sees it now. */
const now = (m: ControlMount): Promise<string> => contentSha256(m.view, join(m.root, 'now'));

const contentOf = async (m: ControlMount, image: string): Promise<string> => {
  await assertClean(image);
  return contentSha256(image, join(m.root, 'flat'));
};

const jobsOf = async (m: ControlMount): Promise<readonly { device: string; status: string }[]> =>
  (await vdiskfsJson(['jobs', m.mountpoint])) as { device: string; status: string }[];

test('an incremental chain: full backup, writes, incremental backups, and what is restored is equal', async (t) => {
  const m = await controlMount(t, { sizeMib: SIZE_MIB });
  const c = await m.qmp();
  const full = join(m.root, 'full.qcow2');
  const bitmap = { node: 'vm', name: 'b', persistent: true };
  await c.execute('block-dirty-bitmap-add', bitmap);
  await backup(m.view, full);
  const days: string[] = [await now(m)];
  // Not synced by the writer: the kernel still holds it.
  await write(m, 3 * MIB + 17, 300_000, 0xaa);
  await write(m, 20 * MIB, 4096, 0xab);
  for (const [day, below] of [
    ['day1.qcow2', 'full.qcow2'] as const,
    ['day2.qcow2', 'day1.qcow2'] as const,
  ]) {
    const image = join(m.root, day);
    await qemuImg(['create', '-q', '-f', 'qcow2', '-b', below, '-F', 'qcow2', image]);
    await backup('--sync', 'incremental', '--bitmap', 'b', '--existing', m.view, image);
    days.push(await now(m));
    // The next day's; also across a new opening of the image.
    const holes = await run('fallocate', ['-p', '-o', String(3 * MIB), '-l', '200000', m.view]);
    assert.equal(holes.status, 0, holes.stderr);
    await write(m, 22 * MIB, MIB, 0xac);
    assert.equal((await vdiskfs(['umount', m.mountpoint])).status, 0);
    await m.mount();
  }
  const images = ['full.qcow2', 'day1.qcow2', 'day2.qcow2'].map((name) => join(m.root, name));
  for (const [i, image] of images.entries()) {
    assert.equal(await contentOf(m, image), days[i], image);
  }
  const map = (await qemuImgJson('map', [images[2] ?? ''])) as { depth: number; length: number }[];
  const own = map.filter((r) => r.depth === 0).reduce((sum, r) => sum + r.length, 0);
  assert.ok(own < 4 * MIB, `${own} bytes of the disk are in the second day`);
});

/** Overwrites all of the disk, and waits until it is in the image. */
const overwrite = async (m: ControlMount): Promise<void> => {
  const args = [
    'if=/dev/urandom',
    `of=${m.view}`,
    'bs=1M',
    `count=${SIZE_MIB}`,
    'conv=notrunc,fsync',
  ];
  const done = await run('dd', args, { timeoutMs: 60_000 });
  assert.equal(done.status, 0, done.stderr);
};

const untilNoJobs = (m: ControlMount): Promise<void> =>
  eventually('the jobs end', async () => (await jobsOf(m)).length === 0, 20_000);

for (const [format, ...options] of [['qcow2'], ['raw'], ['qcow2', '--compress']] as const) {
  test(`a guest that overwrites everything changes nothing of a backup (${[format, ...options].join(' ')})`, async (t) => {
    const m = await controlMount(t, { sizeMib: SIZE_MIB });
    const before = await now(m);
    const target = join(m.root, 'copy');
    const args = ['--speed', '1M', '--format', format, ...options, m.view, target];
    const begun = await vdiskfs(['backup', ...args]);
    assert.equal(begun.status, 0, begun.stderr);
    assert.equal(begun.stdout, 'job vm started\n');
    assert.equal((await jobsOf(m))[0]?.status, 'running');
    // With this, every block is copied.
    await overwrite(m);
    const after = await now(m);
    await untilNoJobs(m);
    if (format === 'qcow2') await assertClean(target);
    await qemuImg(['convert', '-f', format, '-O', 'raw', target, join(m.root, 'flat')]);
    assert.equal(await contentSha256(join(m.root, 'flat'), join(m.root, 'again')), before);
    assert.equal(await now(m), after);
    assert.equal((await vdiskfs(['umount', m.mountpoint])).status, 0);
    await assertClean(m.overlay);
  });
}

test('only what the image has over its backing file, into an overlay of that file; and a target has no view', async (t) => {
  const m = await controlMount(t, { sizeMib: SIZE_MIB });
  await write(m, 20 * MIB, 5000, 0xaa);
  const before = await now(m);
  // Beside the image: the mount shows it when it is done.
  const target = join(m.images, 'copy.qcow2');
  const slow = await vdiskfs(['backup', '--sync', 'top', '--speed', '10k', m.view, target]);
  assert.equal(slow.status, 0, slow.stderr);
  const other = await vdiskfs(['backup', '--sync', 'top', '--existing', m.view, target]);
  assert.match(other.stderr, /busy/);
  const views = (await vdiskfsJson(['status', m.mountpoint])) as { views: { name: string }[] };
  assert.deepEqual(
    views.views.map((v) => v.name),
    ['base.raw', 'vm.raw'],
  );
  assert.equal((await vdiskfs(['job', 'speed', m.view, '0'])).status, 0);
  await untilNoJobs(m);
  assert.equal(await contentSha256(join(m.mountpoint, 'copy.raw'), join(m.root, 'c')), before);
  assert.equal((await vdiskfs(['umount', m.mountpoint])).status, 0);
  const info = (await qemuImgJson('info', [target])) as { 'backing-filename'?: string };
  assert.equal(info['backing-filename'], m.base);
  assert.equal(await contentOf(m, target), before);
});

test('what cannot be backed up is refused, and leaves nothing', async (t) => {
  const m = await controlMount(t, { sizeMib: 8 });
  const target = join(m.root, 'copy.qcow2');
  await qemuImg(['create', '-q', '-f', 'qcow2', target, '4M']);
  const refused = async (args: readonly string[], status: number, what: RegExp): Promise<void> => {
    const done = await vdiskfs(['backup', ...args]);
    assert.match(done.stderr, what);
    assert.equal(done.status, status);
  };
  await refused([m.view, target], 1, /is there already: give --existing/);
  await refused(['--existing', m.view, target], 1, /different sizes/);
  await refused(['--bitmap', 'b', m.view, target], 2, /--bitmap/);
  const missing = ['--sync', 'incremental', '--bitmap', 'b', '--existing', m.view, target];
  await refused(missing, 1, /Dirty bitmap 'b' not found/);
  await refused(['--format', 'raw', '--compress', m.view, join(m.root, 'x')], 1, /Compression/);
  const inside = join(m.mountpoint, 'new.qcow2');
  await refused([m.view, inside], 1, /leads into the mount/);
  const c = await m.qmp();
  await assert.rejects(
    c.execute('drive-backup', { device: 'vm', target: '/x', sync: 'full', 'bitmap-mode': 'never' }),
    /Cannot specify bitmap sync mode without a bitmap/,
  );
  assert.deepEqual(await jobsOf(m), []);
});

test('SIGKILL of the engine: a backup starts again, says so, and is the moment of that', async (t) => {
  const m = await controlMount(t, { sizeMib: SIZE_MIB });
  const target = join(m.root, 'copy.qcow2');
  const c = await m.qmp();
  const limited = { speed: 2 * MIB, 'auto-dismiss': false };
  await c.execute('drive-backup', { device: 'vm', target, sync: 'full', ...limited });
  await sleep(300);
  process.kill(await m.enginePid(), 'SIGKILL');
  await eventually(
    'the job is there again',
    async () => (await jobsOf(m).catch(() => [])).length > 0,
  );
  const before = await now(m);
  await overwrite(m);
  await eventually('it ends', async () => (await jobsOf(m))[0]?.status === 'concluded', 20_000);
  assert.equal(await contentOf(m, target), before);
  process.kill(await m.enginePid(), 'SIGKILL');
  await eventually('its result is there', async () => {
    const [job] = await jobsOf(m).catch(() => []);
    return job?.device === 'vm' && job.status === 'concluded';
  });
  await (await m.qmp()).execute('job-dismiss', { id: 'vm' });
});

test('SIGKILL during an incremental backup: its bitmap is lost, and the result tells', async (t) => {
  const m = await controlMount(t, { sizeMib: SIZE_MIB, mounted: false });
  await qemuImg(['bitmap', '--add', m.overlay, 'b']);
  await m.mount();
  const c = await m.qmp();
  await write(m, 0, 10 * MIB, 0xaa);
  const target = join(m.root, 'copy.qcow2');
  await c.execute('drive-backup', {
    device: 'vm',
    target,
    sync: 'incremental',
    bitmap: 'b',
    speed: MIB,
    'auto-dismiss': false,
  });
  await assert.rejects(
    c.execute('block-dirty-bitmap-clear', { node: 'vm', name: 'b' }),
    /currently in use/,
  );
  await sleep(200);
  process.kill(await m.enginePid(), 'SIGKILL');
  await eventually('the result is there', async () => (await jobsOf(m).catch(() => [])).length > 0);
  const jobs = (await (await m.qmp()).execute('query-jobs')) as { error?: string }[];
  assert.match(jobs[0]?.error ?? '', /cannot go on after a restart: .*'b' is inconsistent/);
  // Who opens the target next takes up what the killed engine has answered for it.
  const again = await m.qmp();
  const file = { driver: 'file', filename: target };
  await again.execute('blockdev-add', { driver: 'qcow2', 'node-name': 'copy', file });
  await again.execute('blockdev-del', { 'node-name': 'copy' });
  await assertClean(target);
});

test('a cancelled incremental backup keeps its bitmap, with what was written meanwhile', async (t) => {
  const m = await controlMount(t, { sizeMib: SIZE_MIB });
  const c = await m.qmp();
  await c.execute('block-dirty-bitmap-add', { node: 'vm', name: 'b', granularity: MIB });
  await write(m, 0, 10 * MIB, 0xaa);
  const given = { device: 'vm', target: join(m.root, 'c.qcow2'), sync: 'incremental', bitmap: 'b' };
  await c.execute('drive-backup', { ...given, speed: MIB });
  await write(m, 12 * MIB, MIB, 0xab);
  await sleep(300);
  await c.execute('block-job-cancel', { device: 'vm' });
  await c.event('BLOCK_JOB_CANCELLED');
  await untilNoJobs(m);
  const blocks = (await c.execute('query-block')) as {
    device: string;
    inserted: { 'dirty-bitmaps': { count: number; busy: boolean }[] };
  }[];
  const [bitmap] = blocks.find((b) => b.device === 'vm')?.inserted['dirty-bitmaps'] ?? [];
  assert.deepEqual([bitmap?.count, bitmap?.busy], [11 * MIB, false]);
});
