/** External snapshots of a mount: a new overlay on top, what lies below it stays as it was, and later mounts know it. */
import assert from 'node:assert/strict';
import { open, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { assertClean, contentSha256, qemuImg, qemuImgJson } from '../support/qemu-img.ts';
import { vdiskfs, vdiskfsJson } from '../support/vdiskfs.ts';
import { type ControlMount, controlMount } from './control-mount.ts';
import { verifyingGuest } from './verifying-guest.ts';

const MIB = 1 << 20;
const SIZE_MIB = 16;

interface ViewStatus {
  readonly name: string;
  readonly path: string;
  readonly readOnlyReason: string | null;
}

const viewsOf = async (m: ControlMount): Promise<readonly ViewStatus[]> =>
  ((await vdiskfsJson(['status', m.mountpoint])) as { views: ViewStatus[] }).views;

const snapshot = async (m: ControlMount, file: string): Promise<void> => {
  const done = await vdiskfs(['snapshot', '--external', file, m.view]);
  assert.equal(done.status, 0, done.stderr);
};

const now = (m: ControlMount): Promise<string> => contentSha256(m.view, join(m.root, 'now'));

/** Of a layer that nobody writes any more, also while it is mounted. */
const contentOf = async (m: ControlMount, image: string): Promise<string> => {
  const flat = join(m.root, 'flat');
  await qemuImg(['convert', '-U', '-O', 'raw', image, flat]);
  return contentSha256(flat, join(m.root, 'again'));
};

test('what was written before is in the snapshot, synced or not; what comes later is in the overlay', async (t) => {
  const m = await controlMount(t, { sizeMib: SIZE_MIB });
  const guest = await open(m.view, 'r+');
  t.after(() => guest.close());
  await guest.write(Buffer.alloc(5000, 0xaa), 0, 5000, 3 * MIB + 11);
  const over = join(m.images, 'over.qcow2');
  await snapshot(m, over);
  const moment = await now(m);
  await guest.write(Buffer.alloc(70_000, 0xab), 0, 70_000, 3 * MIB);
  await guest.write(Buffer.alloc(4096, 0xac), 0, 4096, 12 * MIB);
  await guest.sync();
  const later = await now(m);
  assert.notEqual(later, moment);
  assert.equal(await contentOf(m, m.overlay), moment, 'the image below');
  const views = await viewsOf(m);
  assert.deepEqual(
    views.map((v) => [v.name, v.path]),
    [
      ['base.raw', m.base],
      ['vm.raw', over],
    ],
  );
  const info = (await qemuImgJson('info', ['-U', over])) as { 'backing-filename'?: string };
  assert.equal(info['backing-filename'], 'vm.qcow2');
  process.kill(await m.enginePid(), 'SIGKILL');
  await sleep(300);
  assert.equal(await now(m), later, 'the next engine');
  await guest.write(Buffer.alloc(10, 0xad), 0, 10, MIB);
  await guest.close();
  const last = await now(m);
  // A second one, of the first, in another directory.
  const top = join(m.root, 'top.qcow2');
  await snapshot(m, top);
  assert.equal(await now(m), last);
  assert.equal((await vdiskfs(['umount', m.mountpoint])).status, 0);
  await m.mount();
  assert.equal((await viewsOf(m)).find((v) => v.name === 'vm.raw')?.path, top);
  assert.equal(await now(m), last, 'the next mount');
  assert.equal((await vdiskfs(['umount', m.mountpoint])).status, 0);
  for (const image of [m.overlay, over, top]) await assertClean(image);
  assert.equal(await contentOf(m, m.overlay), moment);
  assert.equal(await contentOf(m, top), last);
});

test('a guest that writes meanwhile loses nothing', async (t) => {
  const m = await controlMount(t, { sizeMib: SIZE_MIB });
  const guest = verifyingGuest(m, { sizeMib: SIZE_MIB, writtenMib: 24 });
  for (const name of ['one.qcow2', 'two.qcow2']) {
    await sleep(200);
    await snapshot(m, join(m.images, name));
  }
  const { status, stderr, stdout } = await guest;
  assert.equal(status, 0, stderr + stdout);
  const last = await now(m);
  assert.equal((await vdiskfs(['umount', m.mountpoint])).status, 0);
  for (const name of ['vm.qcow2', 'one.qcow2', 'two.qcow2'])
    await assertClean(join(m.images, name));
  assert.equal(await contentOf(m, join(m.images, 'two.qcow2')), last);
});

test('an overlay made beforehand is taken when it stands on the image, over HMP too; others are refused', async (t) => {
  const m = await controlMount(t, { sizeMib: SIZE_MIB });
  const c = await m.qmp();
  const ready = join(m.root, 'ready.qcow2');
  const make = (image: string, below: string): Promise<string> =>
    qemuImg([
      'create',
      '-q',
      '-u',
      '-f',
      'qcow2',
      '-b',
      below,
      '-F',
      'qcow2',
      image,
      `${SIZE_MIB}M`,
    ]);
  await make(ready, m.overlay);
  const other = join(m.root, 'other.qcow2');
  await make(other, m.base);
  const take = (file: string, more: object = {}): Promise<unknown> =>
    c.execute('blockdev-snapshot-sync', { device: 'vm', 'snapshot-file': file, ...more });
  await assert.rejects(take(other, { mode: 'existing' }), /is not the device's image/);
  const small = join(m.root, 'small.qcow2');
  await qemuImg(['create', '-q', '-u', '-f', 'qcow2', '-b', m.overlay, '-F', 'qcow2', small, '1M']);
  await assert.rejects(take(small, { mode: 'existing' }), /shows 1048576 bytes/);
  await assert.rejects(
    c.execute('blockdev-snapshot-sync', { device: 'base', 'snapshot-file': '/x' }),
    /read only/,
  );
  await c.execute('block-stream', { device: 'vm', speed: 1000 });
  const names = await readdir(m.images);
  await assert.rejects(take(join(m.images, 'new.qcow2')), /is busy: job .vm. \(stream\) uses it/);
  assert.deepEqual(await readdir(m.images), names, 'nothing is left');
  await c.execute('block-job-cancel', { device: 'vm' });
  await c.event('BLOCK_JOB_CANCELLED');
  const there = await vdiskfs(['snapshot', '--external', ready, m.view]);
  assert.match(there.stderr, /is there already/);
  const before = await now(m);
  const line = { 'command-line': `snapshot_blkdev -n vm ${ready}` };
  assert.equal(await c.execute('human-monitor-command', line), '');
  assert.equal(await now(m), before);
  assert.equal((await viewsOf(m)).find((v) => v.name === 'vm.raw')?.path, ready);
});
