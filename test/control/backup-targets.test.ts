/** Backups to nodes of blockdev-add: packed, over NBD, to a server that does not answer for a while, and by every kind of sync. */
import assert from 'node:assert/strict';
import { mkdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { qemuNbd } from '../support/nbd-server.ts';
import { assertClean, contentSha256, qemuImg, qemuImgJson } from '../support/qemu-img.ts';
import type { QmpConnection } from '../support/qmp.ts';
import { run, vdiskfs } from '../support/vdiskfs.ts';
import { type ControlMount, controlMount } from './control-mount.ts';

const SIZE_MIB = 16;

const write = async (m: ControlMount, fill: string, at: string): Promise<void> => {
  const args = ['-f', 'raw', '-t', 'none', '-c', `write -P ${fill} ${at}`, m.view];
  const done = await run('qemu-io', args, { timeoutMs: 60_000 });
  assert.match(done.stdout, /wrote/, done.stderr);
};

const now = (m: ControlMount): Promise<string> => contentSha256(m.view, join(m.root, 'now'));

const contentOf = async (m: ControlMount, image: string): Promise<string> => {
  await assertClean(image);
  return contentSha256(image, join(m.root, 'flat'));
};

/** Runs `blockdev-backup` to its end. */
const backUp = async (c: QmpConnection, given: object): Promise<void> => {
  c.events.length = 0;
  await c.execute('blockdev-backup', { 'job-id': 'b', device: 'vm', ...given });
  const { data } = await c.event('BLOCK_JOB_COMPLETED');
  assert.equal(data?.['error'], undefined);
};

const addFile = async (c: QmpConnection, node: string, filename: string): Promise<void> => {
  const file = { driver: 'file', filename };
  await c.execute('blockdev-add', { driver: 'qcow2', 'node-name': node, file, backing: null });
};

test('nodes that were added are backed up to, packed or not, again and again, and are taken away', async (t) => {
  const m = await controlMount(t, { sizeMib: SIZE_MIB });
  const c = await m.qmp();
  const [plain, packed] = [join(m.root, 'plain.qcow2'), join(m.root, 'packed.qcow2')];
  for (const path of [plain, packed]) {
    await qemuImg(['create', '-q', '-f', 'qcow2', path, `${SIZE_MIB}M`]);
  }
  await addFile(c, 'plain', plain);
  await addFile(c, 'packed', packed);
  const bitmap = { bitmap: 'since', sync: 'full', 'bitmap-mode': 'on-success' };
  await c.execute('block-dirty-bitmap-add', { node: 'vm', name: 'since' });
  await write(m, '0x10', '7M 1M');
  await backUp(c, { target: 'plain', ...bitmap });
  await backUp(c, { target: 'packed', sync: 'full', compress: true });
  const before = await now(m);
  // What is dirty since, over what both have.
  await write(m, '0x11', '2M 70k');
  await backUp(c, { target: 'packed', sync: 'bitmap', bitmap: 'since', 'bitmap-mode': 'never' });
  await c.execute('block-dirty-bitmap-disable', { node: 'vm', name: 'since' });
  await assert.rejects(
    c.execute('blockdev-backup', { device: 'vm', 'job-id': 'b', target: 'none', sync: 'full' }),
    /Failed to find node with node-name='none'/,
  );
  const limited = { device: 'vm', 'job-id': 'slow', target: 'plain', speed: 1000 };
  await c.execute('blockdev-backup', { ...limited, sync: 'full' });
  await assert.rejects(c.execute('blockdev-del', { 'node-name': 'plain' }), /busy: 'slow' uses it/);
  await c.execute('block-job-set-speed', { device: 'slow', speed: 0 });
  c.events.length = 0;
  await c.event('BLOCK_JOB_COMPLETED');
  for (const name of ['plain', 'packed']) await c.execute('blockdev-del', { 'node-name': name });
  const after = await now(m);
  assert.notEqual(after, before);
  assert.equal(await contentOf(m, plain), after);
  assert.equal(await contentOf(m, packed), after);
  assert.ok((await stat(packed)).blocks * 4 < (await stat(plain)).blocks, 'packed');
  const map = (await qemuImgJson('map', [packed])) as { compressed?: boolean; data: boolean }[];
  assert.ok(map.some(({ data }) => data));
});

test('a guest waits for a target that does not answer for a while, and the backup has what was there', async (t) => {
  const m = await controlMount(t, { sizeMib: SIZE_MIB });
  const c = await m.qmp();
  const remote = join(m.root, 'remote.qcow2');
  await qemuImg(['create', '-q', '-f', 'qcow2', remote, `${SIZE_MIB}M`]);
  const path = join(m.root, 'nbd.sock');
  const server = await qemuNbd(m.cleanup, path, ['-f', 'qcow2', remote]);
  await c.execute('blockdev-add', {
    driver: 'nbd',
    'node-name': 'far',
    server: { type: 'unix', path },
  });
  const before = await now(m);
  const limited = { device: 'vm', 'job-id': 'b', target: 'far', sync: 'full', speed: 100_000 };
  await c.execute('blockdev-backup', limited);
  await server.freeze();
  let isWritten = false;
  const writing = write(m, '0x22', '3M 200k').then(() => {
    isWritten = true;
  });
  await sleep(1000);
  assert.ok(!isWritten, 'what was there is not safe yet');
  // Who reads does not wait.
  const reading = [`if=${m.view}`, 'of=/dev/null', 'iflag=direct', 'bs=64k', 'skip=48', 'count=1'];
  const read = await run('dd', reading);
  server.thaw();
  assert.equal(read.status, 0, read.stderr);
  await writing;
  const after = await now(m);
  assert.notEqual(after, before);
  await c.execute('block-job-set-speed', { device: 'b', speed: 0 });
  const { data } = await c.event('BLOCK_JOB_COMPLETED');
  assert.equal(data?.['error'], undefined);
  await c.execute('blockdev-del', { 'node-name': 'far' });
  await server.kill();
  assert.equal(await contentOf(m, remote), before);
});

test('a target that is full ends the backup and not the guest, and the bitmap keeps all of it', async (t) => {
  const m = await controlMount(t, { sizeMib: SIZE_MIB });
  const c = await m.qmp();
  await c.execute('block-dirty-bitmap-add', { node: 'vm', name: 'since' });
  await write(m, '0x31', '1M 2M');
  const small = join(m.root, 'small');
  await mkdir(small);
  assert.equal((await run('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'none', small])).status, 0);
  m.cleanup.after(async () => void (await run('umount', ['-l', small])));
  const target = join(small, 'copy.qcow2');
  await c.execute('drive-backup', { device: 'vm', target, sync: 'incremental', bitmap: 'since' });
  const { data } = await c.event('BLOCK_JOB_COMPLETED');
  assert.match(String(data?.['error']), /no space/i);
  await write(m, '0x32', '8M 1M');
  const devices = (await c.execute('query-block')) as {
    device: string;
    inserted: { 'dirty-bitmaps': { name: string; count: number; busy: boolean }[] };
  }[];
  const vm = devices.find(({ device }) => device === 'vm');
  const since = vm?.inserted['dirty-bitmaps'].find(({ name }) => name === 'since');
  assert.deepEqual([since?.count, since?.busy], [3 << 20, false]);
  // What could not be written when it was closed is taken up by who opens it next, when there is room.
  await run('mount', ['-o', 'remount,size=8m', small]);
  const again = join(m.root, 'again');
  await mkdir(again);
  assert.equal((await vdiskfs(['mount', small, again])).status, 0);
  const one = await run('qemu-io', ['-f', 'raw', '-c', 'write 0 4k', join(again, 'copy.raw')]);
  assert.equal(one.status, 0, one.stderr);
  assert.equal((await vdiskfs(['umount', again])).status, 0);
  await qemuImg(['check', target]);
});
