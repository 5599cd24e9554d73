/** Mirrors of a mount: what moves, what a guest sees meanwhile, and what later engines and mounts know of it. */
import assert from 'node:assert/strict';
import { mkdir, readdir, readFile, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { vdiskfs, vdiskfsJson } from '../support/loaded-vdiskfs.ts';
import { eventually } from '../support/mounted.ts';
import { qemuNbd } from '../support/nbd-server.ts';
import { assertClean, contentSha256, qemuImg, qemuImgJson } from '../support/qemu-img.ts';
import { run } from '../support/vdiskfs.ts';
import { type ControlMount, controlMount } from './control-mount.ts';
import { verifyingGuest } from './verifying-guest.ts';

const MIB = 1 << 20;

interface ViewStatus {
  readonly name: string;
  readonly path: string;
  readonly standsInFor: string | null;
  readonly readOnlyReason: string | null;
}

const viewsOf = async (m: ControlMount): Promise<readonly ViewStatus[]> =>
  ((await vdiskfsJson(['status', m.mountpoint])) as { views: ViewStatus[] }).views;

const viewOf = async (m: ControlMount): Promise<ViewStatus | undefined> =>
  (await viewsOf(m)).find(({ name }) => name === 'vm.raw');

const elsewhere = async (m: ControlMount): Promise<string> => {
  const directory = join(m.root, 'elsewhere');
  await mkdir(directory);
  return directory;
};

const unmount = async (m: ControlMount): Promise<void> => {
  const done = await vdiskfs(['umount', m.mountpoint]);
  assert.equal(done.status, 0, done.stderr);
};

const write = async (m: ControlMount, fill: string, at: string): Promise<void> => {
  const done = await run('qemu-io', ['-f', 'raw', '-c', `write -P ${fill} ${at}`, m.view]);
  assert.match(done.stdout, /wrote/, done.stderr);
};

test('mirror --complete moves a disk to another directory; engines and mounts that come later know it', async (t) => {
  const m = await controlMount(t, { sizeMib: 32 });
  const target = join(await elsewhere(m), 'moved.qcow2');
  const before = await contentSha256(m.view, join(m.root, 'before'));
  const done = await vdiskfs(['mirror', '--complete', m.view, target]);
  assert.equal(done.status, 0, done.stderr);
  assert.equal(done.stdout, `job vm completed\n${m.view} goes on over ${target}\n`);
  assert.equal((await viewOf(m))?.path, target);
  assert.equal((await viewOf(m))?.standsInFor, m.overlay);
  assert.equal(await contentSha256(m.view, join(m.root, 'after')), before);
  await write(m, '0x5a', '3M 1M');
  const changed = await contentSha256(m.view, join(m.root, 'changed'));
  assert.notEqual(changed, before);
  process.kill(await m.enginePid(), 'SIGKILL');
  await sleep(300);
  assert.equal(await contentSha256(m.view, join(m.root, 'engine')), changed);
  await unmount(m);
  assert.equal(await contentSha256(m.overlay, join(m.root, 'left')), before, 'left as it was');
  await assertClean(target);
  assert.equal(await contentSha256(target, join(m.root, 'target')), changed);
  const info = (await qemuImgJson('info', [target])) as { 'backing-filename'?: string };
  assert.equal(info['backing-filename'], undefined, 'all of the chain is in it');
  // Its original is not needed any more.
  await rm(m.overlay);
  await m.mount();
  assert.deepEqual((await viewsOf(m)).map(({ name }) => name).sort(), ['base.raw', 'vm.raw']);
  assert.equal(await contentSha256(m.view, join(m.root, 'mount')), changed);
});

test('a target beside its source has no view of its own, neither before nor after the pivot', async (t) => {
  const m = await controlMount(t, { sizeMib: 16 });
  const target = join(m.images, 'copy.qcow2');
  const c = await m.qmp();
  await c.execute('drive-mirror', { device: 'vm', target, sync: 'full', format: 'qcow2' });
  await c.event('BLOCK_JOB_READY');
  assert.deepEqual((await viewsOf(m)).map(({ name }) => name).sort(), ['base.raw', 'vm.raw']);
  await c.execute('block-job-complete', { device: 'vm' });
  await c.event('BLOCK_JOB_COMPLETED');
  await sleep(200);
  assert.deepEqual((await viewsOf(m)).map(({ name }) => name).sort(), ['base.raw', 'vm.raw']);
  assert.equal((await viewOf(m))?.path, target);
  // And back again: the record is gone.
  const back = await vdiskfs(['mirror', '--existing', '--complete', m.view, m.overlay]);
  assert.equal(back.status, 0, back.stderr);
  assert.equal((await viewOf(m))?.standsInFor, null);
  await eventually('nothing is kept', async () => {
    const names: readonly string[] = await readdir(m.stateDirectory).catch(() => []);
    return names.length === 0;
  });
});

test('events and queries of a mirror are those of QEMU; a cancel when ready completes it without a pivot', async (t) => {
  const m = await controlMount(t, { sizeMib: 8 });
  const target = join(await elsewhere(m), 'copy.raw');
  const before = await contentSha256(m.view, join(m.root, 'before'));
  const c = await m.qmp();
  await c.execute('drive-mirror', { device: 'vm', target, sync: 'full', format: 'raw' });
  const ready = await c.event('BLOCK_JOB_READY');
  assert.equal(ready.data?.['offset'], ready.data?.['len']);
  const [info] = (await c.execute('query-block-jobs')) as Record<string, unknown>[];
  assert.equal(info?.['type'], 'mirror');
  assert.equal(info?.['ready'], true);
  assert.equal(info?.['status'], 'ready');
  assert.equal(info?.['actively-synced'], false);
  await c.execute('block-job-change', { id: 'vm', type: 'mirror', 'copy-mode': 'write-blocking' });
  const [now] = (await c.execute('query-block-jobs')) as Record<string, unknown>[];
  assert.equal(now?.['actively-synced'], true);
  await assert.rejects(
    c.execute('block-job-change', { id: 'vm', type: 'mirror', 'copy-mode': 'background' }),
    /Change to copy mode 'background' is not implemented/,
  );
  await c.execute('block-job-cancel', { device: 'vm' });
  await c.event('BLOCK_JOB_COMPLETED');
  while (!c.events.some((e) => e.data?.['status'] === 'null')) await sleep(10);
  const names = c.events.map((e) =>
    e.event === 'JOB_STATUS_CHANGE' ? String(e.data?.['status']) : String(e.event),
  );
  const expected = ['created', 'running', 'ready', 'BLOCK_JOB_READY', 'waiting', 'pending'];
  assert.deepEqual(names, [...expected, 'BLOCK_JOB_COMPLETED', 'concluded', 'null']);
  assert.equal((await viewOf(m))?.path, m.overlay, 'no pivot');
  await unmount(m);
  assert.equal(await contentSha256(target, join(m.root, 'target')), before);
});

test('sync top makes an overlay of the same base, none one of the image itself', async (t) => {
  const m = await controlMount(t, { sizeMib: 16 });
  const directory = await elsewhere(m);
  const top = join(directory, 'top.qcow2');
  const before = await contentSha256(m.view, join(m.root, 'before'));
  const done = await vdiskfs(['mirror', '--sync', 'top', '--complete', m.view, top]);
  assert.equal(done.status, 0, done.stderr);
  assert.equal(await contentSha256(m.view, join(m.root, 'top')), before);
  assert.ok((await stat(top)).blocks * 512 < 2 << 20, 'what the base has is not copied');
  const over = join(directory, 'over.qcow2');
  const c = await m.qmp();
  await c.execute('drive-mirror', { device: 'vm', target: over, sync: 'none' });
  await c.event('BLOCK_JOB_READY');
  await write(m, '0x77', '5000k 300k');
  const changed = await contentSha256(m.view, join(m.root, 'changed'));
  await c.execute('block-job-complete', { device: 'vm' });
  await c.event('BLOCK_JOB_COMPLETED');
  assert.equal(await contentSha256(m.view, join(m.root, 'over')), changed);
  await write(m, '0x78', '6000k 300k');
  const last = await contentSha256(m.view, join(m.root, 'last'));
  await unmount(m);
  const backing = async (path: string): Promise<unknown> =>
    ((await qemuImgJson('info', [path])) as Record<string, unknown>)['full-backing-filename'];
  assert.equal(await backing(top), m.base);
  assert.equal(await backing(over), top);
  await assertClean(over);
  assert.equal(await contentSha256(over, join(m.root, 'target')), last);
});

test('a disk moves to an NBD server of QEMU under a guest that writes and verifies', async (t) => {
  const m = await controlMount(t, { sizeMib: 64 });
  const remote = join(await elsewhere(m), 'remote.qcow2');
  await qemuImg(['create', '-q', '-f', 'qcow2', remote, '64M']);
  const server = await qemuNbd(m.cleanup, join(m.root, 'nbd.sock'), ['-f', 'qcow2', remote]);
  const guest = verifyingGuest(m, { writtenMib: 48 });
  await sleep(300);
  const moved = await vdiskfs(['mirror', '--complete', m.view, server.url], { timeoutMs: 60_000 });
  assert.equal(moved.status, 0, moved.stderr);
  const { status, stderr, stdout } = await guest;
  assert.equal(status, 0, stderr + stdout);
  assert.equal((await viewOf(m))?.path, server.url);
  const content = await contentSha256(m.view, join(m.root, 'view'));
  await unmount(m);
  await server.kill();
  await assertClean(remote);
  assert.equal(await contentSha256(remote, join(m.root, 'target')), content);
});

test('a disk moves from file to file and back, in both copy modes, under a guest that verifies', async (t) => {
  const m = await controlMount(t, { sizeMib: 64 });
  const directory = await elsewhere(m);
  const guest = verifyingGuest(m, { writtenMib: 128 });
  await sleep(200);
  const moves = [
    ['--format', 'raw', m.view, join(directory, 'a.raw')],
    ['--mode', 'write-blocking', '--format', 'qcow2', m.view, join(directory, 'b.qcow2')],
    ['--existing', m.view, m.overlay],
  ];
  for (const move of moves) {
    const moved = await vdiskfs(['mirror', '--complete', ...move], { timeoutMs: 60_000 });
    assert.equal(moved.status, 0, moved.stderr);
  }
  const { status, stderr, stdout } = await guest;
  assert.equal(status, 0, stderr + stdout);
  const content = await contentSha256(m.view, join(m.root, 'view'));
  await unmount(m);
  await assertClean(m.overlay);
  await assertClean(join(directory, 'b.qcow2'));
  assert.equal(await contentSha256(m.overlay, join(m.root, 'target')), content);
});

test('targets that are in use are refused, with what uses them', async (t) => {
  const m = await controlMount(t, { sizeMib: 8 });
  const directory = await elsewhere(m);
  const there = join(directory, 'there.raw');
  await qemuImg(['create', '-q', '-f', 'raw', there, '8M']);
  const refused = async (args: readonly string[], why: RegExp): Promise<void> => {
    const done = await vdiskfs(['mirror', ...args]);
    assert.equal(done.status, 1, done.stdout);
    assert.match(done.stderr, why);
  };
  await refused([m.view, there], /is there already: --existing/);
  await refused(['--existing', m.view, m.overlay], /is open already|is in use/);
  await refused(['--existing', m.view, m.base], /uses it as its backing image/);
  await refused([m.view, join(m.mountpoint, 'new.qcow2')], /leads into the mount/);
  await refused([m.view, join(m.root, 'nowhere', 'new.qcow2')], /no such file/);
  const c = await m.qmp();
  await c.execute('blockdev-add', {
    driver: 'raw',
    'node-name': 'to',
    file: { driver: 'file', filename: there },
  });
  await refused(['--existing', '--format', 'raw', m.view, there], /was added as one/);
  await c.execute('blockdev-mirror', { device: 'vm', target: 'to', sync: 'full', 'job-id': 'j' });
  await assert.rejects(c.execute('blockdev-del', { 'node-name': 'to' }), /busy: 'j' uses it/);
  await c.event('BLOCK_JOB_READY');
  await refused([m.view, join(directory, 'second.qcow2')], /is busy: job 'j' \(mirror\) uses it/);
  await c.execute('job-cancel', { id: 'j' });
  await c.event('BLOCK_JOB_CANCELLED');
  await c.execute('blockdev-del', { 'node-name': 'to' });
  await assert.rejects(c.execute('blockdev-del', { 'node-name': 'to' }), /Failed to find node/);
});

test('a target that is removed, or another file, when it is to take the place of its source: the view stays', async (t) => {
  const m = await controlMount(t, { sizeMib: 8 });
  const target = join(await elsewhere(m), 'copy.qcow2');
  const before = await contentSha256(m.view, join(m.root, 'before'));
  const c = await m.qmp();
  for (const [replaced, why] of [
    [false, /no such file/],
    [true, /another file lies there now/],
  ] as const) {
    c.events.length = 0;
    await c.execute('drive-mirror', { device: 'vm', target, sync: 'full', format: 'qcow2' });
    await c.event('BLOCK_JOB_READY');
    await rm(target);
    if (replaced) await qemuImg(['create', '-q', '-f', 'qcow2', target, '8M']);
    await c.execute('block-job-complete', { device: 'vm' });
    const { data } = await c.event('BLOCK_JOB_COMPLETED');
    assert.match(String(data?.['error']), why);
    assert.equal((await viewOf(m))?.path, m.overlay);
  }
  await write(m, '0x5a', '3M 1M');
  assert.notEqual(await contentSha256(m.view, join(m.root, 'after')), before);
  await unmount(m);
  await assertClean(m.overlay);
});

test('nodes of blockdev-add are put together, copied to and taken apart, as libvirt does it; and HMP', async (t) => {
  const m = await controlMount(t, { sizeMib: 8 });
  const directory = await elsewhere(m);
  const file = join(directory, 'to.qcow2');
  const remote = join(directory, 'remote.raw');
  await qemuImg(['create', '-q', '-f', 'qcow2', file, '8M']);
  await qemuImg(['create', '-q', '-f', 'raw', remote, '8M']);
  const far = await qemuNbd(m.cleanup, join(m.root, 'nbd.sock'), ['-f', 'raw', '-x', 'd', remote]);
  const before = await contentSha256(m.view, join(m.root, 'before'));
  const c = await m.qmp();
  const format = { driver: 'qcow2', 'node-name': 'format', file: 'storage', backing: null };
  const server = { type: 'unix', path: join(m.root, 'nbd.sock') };
  await c.execute('blockdev-add', { driver: 'file', 'node-name': 'storage', filename: file });
  await c.execute('blockdev-add', format);
  await assert.rejects(c.execute('blockdev-del', { 'node-name': 'storage' }), /busy/);
  await assert.rejects(
    c.execute('blockdev-add', { driver: 'file', 'node-name': 'format', filename: remote }),
    /Duplicate nodes with node-name='format'/,
  );
  await c.execute('blockdev-add', { driver: 'nbd', 'node-name': 'far', server, export: 'd' });
  await assert.rejects(
    c.execute('blockdev-add', { driver: 'raw', 'node-name': 'x', file: { driver: 'file', fd: 3 } }),
    /Parameter 'file.fd' is unexpected/,
  );
  for (const target of ['far', 'format']) {
    c.events.length = 0;
    await c.execute('blockdev-mirror', { device: 'vm', target, sync: 'full', 'job-id': 'j' });
    await c.event('BLOCK_JOB_READY');
    await c.execute('block-job-cancel', { device: 'j' });
    await c.event('BLOCK_JOB_COMPLETED');
  }
  for (const name of ['far', 'format', 'storage']) {
    await c.execute('blockdev-del', { 'node-name': name });
  }
  await far.kill();
  await assertClean(file);
  assert.equal(await contentSha256(file, join(m.root, 'file')), before);
  await qemuImg(['compare', '-f', 'raw', '-F', 'qcow2', remote, file]);
  const monitor = (line: string): Promise<unknown> =>
    c.execute('human-monitor-command', { 'command-line': line });
  c.events.length = 0;
  assert.equal(await monitor(`drive_mirror -n -f vm ${remote} raw`), '');
  await c.event('BLOCK_JOB_READY');
  assert.match(String(await monitor('info block-jobs')), /^Type mirror, device vm: Completed/);
  assert.equal(await monitor('block_job_complete vm'), '');
  await c.event('BLOCK_JOB_COMPLETED');
  assert.equal((await viewOf(m))?.path, remote);
});

test('an engine that dies or is exchanged in the middle of a mirror: it goes on with what is left', async (t) => {
  const m = await controlMount(t, { sizeMib: 32 });
  const target = join(await elsewhere(m), 'moved.qcow2');
  assert.equal((await vdiskfs(['mirror', '--speed', '6M', m.view, target])).status, 0);
  await sleep(1200);
  await write(m, '0x33', '100k 200k');
  process.kill(await m.enginePid(), 'SIGKILL');
  await sleep(500);
  await write(m, '0x34', '20M 200k');
  let c = await m.qmp();
  const [job] = (await c.execute('query-block-jobs')) as { device: string; len: number }[];
  assert.equal(job?.device, 'vm', 'taken up by the new engine');
  assert.ok(job.len < 22 * MIB, `of 24 MiB some were copied: ${job.len}`);
  c.close();
  assert.equal((await vdiskfs(['restart', m.mountpoint])).status, 0);
  await write(m, '0x35', '24M 100k');
  c = await m.qmp();
  const [next] = (await c.execute('query-block-jobs')) as { device: string; len: number }[];
  assert.equal(next?.device, 'vm', 'taken up after an orderly change');
  assert.ok(next.len <= job.len + MIB);
  await c.execute('block-job-set-speed', { device: 'vm', speed: 0 });
  // It may have become so before this client came.
  await eventually('it is ready', async () => {
    const [now] = (await c.execute('query-block-jobs')) as { ready: boolean }[];
    return now?.ready === true;
  });
  await c.execute('job-complete', { id: 'vm' });
  await c.event('BLOCK_JOB_COMPLETED');
  const content = await contentSha256(m.view, join(m.root, 'view'));
  await unmount(m);
  await assertClean(target);
  assert.equal(await contentSha256(target, join(m.root, 'target')), content);
  await eventually('the job is forgotten', async () => {
    const names = await readdir(m.stateDirectory);
    return !names.some((name) => name.endsWith('.job'));
  });
  const record = (await readdir(m.stateDirectory))[0] ?? '';
  assert.match(await readFile(join(m.stateDirectory, record), 'utf8'), /moved\.qcow2/);
});
