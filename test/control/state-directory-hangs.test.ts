/** A state directory on a disk that hangs: what waits for it, how long, and what becomes of that. */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { mkdir, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { GIVE_UP_MS } from '../../src/base/bounded-wait.ts';
import { type Place, placeOf, KERNEL as subject } from '../mount/suite/subject.ts';
import { tool } from '../support/file-tools.ts';
import { hang } from '../support/hanging-directory.ts';
import { exists } from '../support/host-files.ts';
import { loopFileSystem } from '../support/loop-file-system.ts';
import { eventually, type Mounted, refusedMount } from '../support/mounted.ts';
import { assertClean, qemuImg, qemuIo } from '../support/qemu-img.ts';
import { QmpConnection } from '../support/qmp.ts';
import { run, vdiskfs } from '../support/vdiskfs.ts';

const PATIENCE_MS = 60_000;

/** Each wait for the directory ends after it; the rest is loading programs on a busy machine. */
const SLOWER_MS = GIVE_UP_MS + 10_000;

test('a state directory that hangs costs a job, and the end of its mount, some seconds and no more', async (t) => {
  const place = await placeOf(t, subject);
  const [base, image] = [place.image('base.qcow2'), place.image('vm.qcow2')];
  await qemuImg(['create', '-q', '-f', 'qcow2', base, '8M']);
  await qemuImg(['create', '-q', '-f', 'qcow2', '-b', base, '-F', 'qcow2', image]);
  const [socket, state] = [join(place.root, 'socket'), join(place.root, 'state')];
  await mkdir(state);
  // Who opens it to write waits for a reader: here for ever.
  await tool('mkfifo', [join(state, 'vm.job.new')]);
  const mounted = await place.mount(['--socket', socket, '--state-dir', state]);
  const c = await QmpConnection.open(socket);
  const begunMs = performance.now();
  await c.execute('block-stream', { device: 'vm' });
  await c.event('BLOCK_JOB_COMPLETED', SLOWER_MS);
  const toldMs = performance.now();
  assert.ok(toldMs - begunMs < SLOWER_MS, `told after ${toldMs - begunMs} ms`);
  assert.match(mounted.log, /warning vm: its result is not kept after 5 s/);
  c.close();
  await mounted.unmount();
  const endMs = performance.now() - toldMs;
  // Once for the directory, once for the thread that hangs in it.
  assert.ok(endMs < GIVE_UP_MS + SLOWER_MS, `ended after ${endMs} ms`);
  assert.match(mounted.log, /state: does not answer: what was last told of jobs is not kept/);
  assert.match(mounted.log, /has closed all images, but does not exit/);
  await assertClean(image);
});

interface HangScene {
  readonly place: Place;
  readonly state: string;
  readonly socket: string;
  /** An overlay, of which a stream takes long. */
  readonly image: string;
  mount(): Promise<Mounted>;
}

const hangScene = async (t: Parameters<typeof placeOf>[0]): Promise<HangScene> => {
  const place = await placeOf(t, subject);
  const [base, image] = [join(place.root, 'base.qcow2'), place.image('vm.qcow2')];
  await qemuImg(['create', '-q', '-f', 'qcow2', base, '8M']);
  await qemuIo(base, ['write -q -P 7 0 8M']);
  await qemuImg(['create', '-q', '-f', 'qcow2', '-b', base, '-F', 'qcow2', image]);
  const [socket, state] = [join(place.root, 'socket'), join(place.root, 'state')];
  await mkdir(state);
  const options = ['--socket', socket, '--state-dir', state, '--backing-dir', place.root];
  return { place, state, socket, image, mount: () => place.mount(options) };
};

const SLOWLY = 64 << 10;

/** One block of a view, past the kernel's pages; how long that took, in ms. */
const readBlock = async (view: string, pattern: number): Promise<number> => {
  const begunMs = performance.now();
  const done = await run('sh', [
    '-c',
    `dd if=${view} iflag=direct bs=4k count=1 | od -An -tu1 -N1`,
  ]);
  assert.equal(Number(done.stdout), pattern, done.stderr);
  return performance.now() - begunMs;
};

test('what is no regular file in the state directory is left alone, and nobody waits for it', async (t) => {
  const { state, place, mount } = await hangScene(t);
  for (const name of ['vm.job', '0123456789abcdef.view']) await tool('mkfifo', [join(state, name)]);
  const mounted = await mount();
  await readBlock(mounted.path('vm.raw'), 7);
  assert.equal((await vdiskfs(['restart', mounted.mountpoint])).status, 0);
  await readBlock(mounted.path('vm.raw'), 7);
  await mounted.unmount();
  assert.match(mounted.log, /warning \S*\/vm\.job: is no regular file/);
  assert.match(mounted.log, /warning \S*\/0123456789abcdef\.view: is no regular file/);
  assert.doesNotMatch(mounted.log, /does not/);
  assert.deepEqual(await readdir(place.images), ['vm.qcow2']);
});

test('engines that take over while the state directory hangs serve at once, what they shall; jobs wait', async (t) => {
  const { place, state, socket, image, mount } = await hangScene(t);
  const mounted = await mount();
  const c = await QmpConnection.open(socket);
  const target = join(place.root, 'target.qcow2');
  await c.execute('drive-mirror', { device: 'vm', target, sync: 'full', format: 'qcow2' });
  await c.event('BLOCK_JOB_READY', PATIENCE_MS);
  await c.execute('block-job-complete', { device: 'vm' });
  await c.event('BLOCK_JOB_COMPLETED', PATIENCE_MS);
  const view = mounted.path('vm.raw');
  const written = await run('sh', [
    '-c',
    `head -c 4096 /dev/zero | dd of=${view} conv=notrunc,fsync`,
  ]);
  assert.equal(written.status, 0, written.stderr);
  // Another mirror, which would be taken up.
  const next = join(place.root, 'next.qcow2');
  const slowly = { sync: 'full', format: 'qcow2', speed: SLOWLY };
  await c.execute('drive-mirror', { device: 'vm', target: next, ...slowly });
  c.close();
  await eventually('it is kept', () => exists(join(state, 'vm.job')));
  const release = await hang(place.cleanup, state);
  const engine = async (): Promise<number> => {
    const status = await vdiskfs(['status', '--json', mounted.mountpoint]);
    return status.status === 0 ? (JSON.parse(status.stdout) as { pid: number }).pid : 0;
  };
  const before = await engine();
  process.kill(before, 'SIGKILL');
  const readMs = await readBlock(view, 0);
  assert.ok(readMs < GIVE_UP_MS, `read after ${readMs} ms`);
  await eventually(
    'another serves',
    async () => ![0, before].includes(await engine()),
    PATIENCE_MS,
  );
  assert.equal((await vdiskfs(['restart', mounted.mountpoint])).status, 0);
  await readBlock(view, 0);
  const begunMs = performance.now();
  await mounted.unmount();
  const endMs = performance.now() - begunMs;
  assert.ok(endMs < GIVE_UP_MS + SLOWER_MS, `ended after ${endMs} ms`);
  assert.match(
    mounted.log,
    /warning \S*state: does not answer for 5 s: jobs that are kept there wait/,
  );
  const again = await refusedMount({
    backend: 'kernel',
    sources: [place.images],
    mountpoint: mounted.mountpoint,
    args: ['--state-dir', state],
  });
  assert.equal(again.status, 1);
  assert.match(again.stderr, /state: does not answer for 5 s/);
  await release();
  const last = await mount();
  await readBlock(last.path('vm.raw'), 0);
  await last.unmount();
  assert.match(last.log, /info vm: begins again: what its target lacks/);
  for (const path of [image, target, next]) await assertClean(path);
});

test('a pivot whose record hangs is taken back, and its guest goes on', async (t) => {
  const { place, state, socket, image, mount } = await hangScene(t);
  const mounted = await mount();
  const digest = createHash('sha256').update(image).digest('hex').slice(0, 16);
  // Who opens it to write waits for a reader: here for ever.
  await tool('mkfifo', [join(state, `${digest}.view.new`)]);
  const c = await QmpConnection.open(socket);
  const target = join(place.root, 'target.qcow2');
  await c.execute('drive-mirror', { device: 'vm', target, sync: 'full', format: 'qcow2' });
  await c.event('BLOCK_JOB_READY', PATIENCE_MS);
  await c.execute('block-job-complete', { device: 'vm' });
  const begunMs = performance.now();
  const view = mounted.path('vm.raw');
  const written = await run('sh', [
    '-c',
    `head -c 4096 /dev/zero | dd of=${view} conv=notrunc,fsync`,
  ]);
  assert.equal(written.status, 0, written.stderr);
  const writtenMs = performance.now() - begunMs;
  assert.ok(writtenMs < SLOWER_MS, `a guest waited ${writtenMs} ms`);
  const { error } = (await c.event('BLOCK_JOB_COMPLETED', PATIENCE_MS)).data as { error?: string };
  assert.match(error ?? '', /\.view: does not answer for 5 s/);
  c.close();
  await mounted.unmount();
  assert.deepEqual(await readdir(state), [`${digest}.view.new`]);
  const later = await mount();
  await readBlock(later.path('vm.raw'), 0);
  await later.unmount();
  await assertClean(image);
});

test('an engine that cannot exit, because a call to a frozen disk hangs in it, keeps no other from taking over', async (t) => {
  const { place, state, socket, image, mount } = await hangScene(t);
  const disk = await loopFileSystem('ext4', place.root, 32 << 20, state);
  place.cleanup.after(() => disk.close());
  const mounted = await mount();
  const c = await QmpConnection.open(socket);
  await c.execute('block-stream', { device: 'vm', speed: SLOWLY });
  await tool('fsfreeze', ['-f', state]);
  let isFrozen = true;
  const thaw = async (): Promise<void> => {
    if (isFrozen) await tool('fsfreeze', ['-u', state]);
    isFrozen = false;
  };
  place.cleanup.after(thaw);
  await c.execute('job-pause', { id: 'vm' });
  c.close();
  const begunMs = performance.now();
  assert.equal((await vdiskfs(['restart', mounted.mountpoint])).status, 0);
  const tookMs = performance.now() - begunMs;
  assert.ok(tookMs < GIVE_UP_MS + SLOWER_MS, `taken over after ${tookMs} ms`);
  await readBlock(mounted.path('vm.raw'), 7);
  assert.match(mounted.log, /has closed all images, but does not exit/);
  await thaw();
  await mounted.unmount();
  await assertClean(image);
});
