/** Mirrors to targets of every kind: brought up to date by a bitmap, of a format of our own, and one that is slower than the guest. */
import assert from 'node:assert/strict';
import { mkdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { vdiskfs, vdiskfsJson } from '../support/loaded-vdiskfs.ts';
import { qemuNbd } from '../support/nbd-server.ts';
import { assertClean, contentSha256, qemuImg } from '../support/qemu-img.ts';
import type { QmpConnection } from '../support/qmp.ts';
import { run } from '../support/vdiskfs.ts';
import { type ControlMount, controlMount } from './control-mount.ts';
import { verifyingGuest } from './verifying-guest.ts';

const MIB = 1 << 20;
const SIZE_MIB = 16;

const write = async (m: ControlMount, fill: string, at: string): Promise<void> => {
  const args = ['-f', 'raw', '-t', 'none', '-c', `write -P ${fill} ${at}`, m.view];
  const done = await run('qemu-io', args);
  assert.match(done.stdout, /wrote/, done.stderr);
};

const now = (m: ControlMount): Promise<string> => contentSha256(m.view, join(m.root, 'now'));

const ok = async (args: readonly string[]): Promise<void> => {
  const done = await vdiskfs(args, { timeoutMs: 60_000 });
  assert.equal(done.status, 0, done.stderr);
};

/** How much of the disk is dirty in the bitmap. */
const dirtyBytes = async (c: QmpConnection): Promise<number> => {
  const devices = (await c.execute('query-block')) as {
    device: string;
    inserted: { 'dirty-bitmaps': { name: string; count: number }[] };
  }[];
  const vm = devices.find(({ device }) => device === 'vm');
  return vm?.inserted['dirty-bitmaps'].find(({ name }) => name === 'since')?.count ?? -1;
};

test('a copy on a server of QEMU is brought up to date by a bitmap, which is cleared when that has succeeded', async (t) => {
  const m = await controlMount(t, { sizeMib: SIZE_MIB });
  const remote = join(m.root, 'remote.qcow2');
  await qemuImg(['create', '-q', '-f', 'qcow2', remote, `${SIZE_MIB}M`]);
  const server = await qemuNbd(m.cleanup, join(m.root, 'nbd.sock'), ['-f', 'qcow2', remote]);
  const c = await m.qmp();
  const mirror = async (given: object): Promise<void> => {
    c.events.length = 0;
    await c.execute('drive-mirror', {
      device: 'vm',
      target: server.url,
      mode: 'existing',
      ...given,
    });
  };
  const leave = async (force: boolean): Promise<number> => {
    const { data } = await c.event('BLOCK_JOB_READY');
    assert.equal(data?.['offset'], data?.['len']);
    await c.execute('block-job-cancel', { device: 'vm', force });
    await c.event(force ? 'BLOCK_JOB_CANCELLED' : 'BLOCK_JOB_COMPLETED');
    return Number(data?.['len']);
  };
  await c.execute('block-dirty-bitmap-add', { node: 'vm', name: 'since' });
  await mirror({ sync: 'full' });
  assert.ok((await leave(false)) >= 12 * MIB);
  const incremental = { sync: 'incremental', bitmap: 'since' };
  for (const [fill, force] of [
    ['0x21', true],
    ['0x22', false],
    ['0x23', false],
  ] as const) {
    await write(m, fill, '5M 130k');
    const dirty = await dirtyBytes(c);
    assert.ok(dirty > 0);
    await mirror(incremental);
    await write(m, fill, '9M 64k');
    assert.ok((await leave(force)) < MIB, 'no more than what is dirty is copied');
    assert.equal(await dirtyBytes(c), force ? dirty + 64 * 1024 : 0);
  }
  const content = await now(m);
  await ok(['umount', m.mountpoint]);
  await server.kill();
  await assertClean(remote);
  assert.equal(await contentSha256(remote, join(m.root, 'flat')), content);
});

test('a disk moves to an add-cow image under a guest that verifies, and later mounts find it there', async (t) => {
  const m = await controlMount(t, { sizeMib: SIZE_MIB, mounted: false });
  const directory = join(m.root, 'elsewhere');
  await mkdir(directory);
  const target = join(directory, 'disk.add-cow');
  await writeFile(join(directory, 'disk.img'), '');
  await ok(['create', '-f', 'add-cow', '-o', 'image_file=disk.img', target, `${SIZE_MIB}M`]);
  const allowed = ['--backing-dir', directory];
  await m.mount(allowed);
  const other = await vdiskfs(['mirror', '--format', 'add-cow', m.view, join(m.root, 'made')]);
  assert.match(other.stderr, /'add-cow' are not made by a job: .* \(--existing\)/);
  const guest = verifyingGuest(m, { sizeMib: SIZE_MIB, writtenMib: 16 });
  await ok(['mirror', '--existing', '--complete', m.view, target]);
  const { status, stderr, stdout } = await guest;
  assert.equal(status, 0, stderr + stdout);
  const content = await now(m);
  await ok(['umount', m.mountpoint]);
  await rm(m.overlay);
  await m.mount(allowed);
  assert.equal(await now(m), content);
  const { views } = (await vdiskfsJson(['status', m.mountpoint])) as {
    views: { name: string; path: string }[];
  };
  assert.equal(views.find(({ name }) => name === 'vm.raw')?.path, target);
  await ok(['umount', m.mountpoint]);
  // All of the disk is in it.
  assert.equal(await contentSha256(join(directory, 'disk.img'), join(m.root, 'flat')), content);
});

const PROMPT_MS = 3000;

test('a mirror that never gets ready is cancelled at once, or converges when writes wait for the target', async (t) => {
  const m = await controlMount(t, { sizeMib: SIZE_MIB });
  const c = await m.qmp();
  const guest = verifyingGuest(m, { sizeMib: SIZE_MIB, writtenMib: 1500 });
  let isWriting = true;
  void guest.then(() => {
    isWriting = false;
  });
  const target = join(m.root, 'copy.raw');
  const slow = { device: 'vm', target, sync: 'full', format: 'raw', speed: 2 * MIB };
  const seen: { offset: number; len: number }[] = [];
  await c.execute('drive-mirror', slow);
  for (let i = 0; i < 10; i++) {
    const [info] = (await c.execute('query-block-jobs')) as {
      offset: number;
      len: number;
      ready: boolean;
    }[];
    assert.ok(info !== undefined && !info.ready);
    seen.push(info);
    await sleep(50);
  }
  for (const [i, { offset, len }] of seen.entries()) {
    const last = seen[i - 1] ?? { offset: 0, len: 0 };
    assert.ok(offset >= last.offset && len >= last.len && offset <= len, JSON.stringify(seen));
  }
  const begunMs = performance.now();
  await c.execute('block-job-cancel', { device: 'vm' });
  await c.event('BLOCK_JOB_CANCELLED');
  const tookMs = performance.now() - begunMs;
  assert.ok(tookMs < PROMPT_MS, `${tookMs} ms`);
  assert.ok(isWriting, 'the guest wrote all along');

  c.events.length = 0;
  await rm(target);
  await c.execute('drive-mirror', slow);
  await c.execute('block-job-change', { id: 'vm', type: 'mirror', 'copy-mode': 'write-blocking' });
  await c.execute('block-job-set-speed', { device: 'vm', speed: 16 * MIB });
  await c.event('BLOCK_JOB_READY', 30_000);
  assert.ok(isWriting, 'the guest wrote all along');
  await c.execute('block-job-complete', { device: 'vm' });
  const { data } = await c.event('BLOCK_JOB_COMPLETED');
  assert.equal(data?.['error'], undefined);
  const { status, stderr, stdout } = await guest;
  assert.equal(status, 0, stderr + stdout);
  const content = await now(m);
  await ok(['umount', m.mountpoint]);
  assert.equal(await contentSha256(target, join(m.root, 'flat')), content);
});
