/** Jobs of each kind and the end of their mount, or the death of their engine: no image is harmed, and each is told of. */
import assert from 'node:assert/strict';
import { open, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { GIVE_UP_MS } from '../../src/base/bounded-wait.ts';
import { type Place, placeOf, KERNEL as subject } from '../mount/suite/subject.ts';
import { vdiskfs, vdiskfsJson } from '../support/loaded-vdiskfs.ts';
import { eventually, type Mounted } from '../support/mounted.ts';
import { qemuNbd } from '../support/nbd-server.ts';
import { assertClean, contentSha256, qemuImg, qemuIo } from '../support/qemu-img.ts';
import { QmpConnection } from '../support/qmp.ts';
import type { Cleanup } from '../support/scratch.ts';

const PATIENCE_MS = 30_000;
const NAMES = ['stream', 'mirror', 'active', 'layers', 'backup', 'kept'];
/** Of the images that go on with the next mount. */
const GO_ON = ['stream', 'mirror', 'active', 'layers'];

interface Info {
  readonly device: string;
  readonly ready: boolean;
}

interface Ended {
  readonly id: string;
  readonly status: string;
  readonly error?: string;
}

interface Scene {
  readonly place: Place;
  /** Options of its mounts. */
  readonly kept: readonly string[];
  readonly socket: string;
  readonly state: string;
  /** What all views show. */
  readonly before: string;
  content(path: string): Promise<string>;
  target(name: string): string;
}

/** A chain of three images for each of the names, all with the same content. */
const sceneOf = async (t: Cleanup): Promise<Scene> => {
  const place = await placeOf(t, subject);
  const make = async (name: string, below: string | null, data: string): Promise<void> => {
    const link = below === null ? [] : ['-b', below, '-F', 'qcow2'];
    await qemuImg(['create', '-q', '-f', 'qcow2', ...link, place.image(name), '8M']);
    await qemuIo(place.image(name), [`write -q -P ${data}`]);
  };
  for (const name of NAMES) {
    await make(`${name}-base.qcow2`, null, '7 0 6M');
    await make(`${name}-mid.qcow2`, `${name}-base.qcow2`, '8 1M 2M');
    await make(`${name}.qcow2`, `${name}-mid.qcow2`, '9 2M 2M');
  }
  const [socket, state] = [join(place.root, 'socket'), join(place.root, 'state')];
  const content = (path: string): Promise<string> => contentSha256(path, join(place.root, 'flat'));
  return {
    place,
    kept: ['--socket', socket, '--state-dir', state],
    socket,
    state,
    before: await content(place.image('stream.qcow2')),
    content,
    target: (name) => join(place.root, `${name}-copy.qcow2`),
  };
};

/** A job on each image, too slow to end. */
const startAll = async (
  c: QmpConnection,
  { target }: Scene,
  dismissal: (name: string) => boolean,
): Promise<void> => {
  const of = (device: string): object => ({
    device,
    speed: 1000,
    'auto-dismiss': dismissal(device),
  });
  const copied = (name: string): object => ({ ...of(name), sync: 'full', target: target(name) });
  await c.execute('block-stream', of('stream'));
  await c.execute('drive-mirror', copied('mirror'));
  await c.execute('block-commit', { ...of('active'), base: 'active-base.qcow2' });
  await c.execute('block-commit', { ...of('layers'), top: 'layers-mid.qcow2' });
  await c.execute('drive-backup', copied('backup'));
  await c.execute('drive-backup', copied('kept'));
};

const jobsOf = async (c: QmpConnection): Promise<readonly Info[]> =>
  (await c.execute('query-block-jobs')) as readonly Info[];

/** Lets them come to their end. */
const finish = async (c: QmpConnection, names: readonly string[]): Promise<void> => {
  for (const device of names) await c.execute('block-job-set-speed', { device, speed: 0 });
  for (const device of ['mirror', 'active']) {
    const isReady = async (): Promise<boolean> =>
      (await jobsOf(c)).some((job) => job.device === device && job.ready);
    await eventually(`${device} is ready`, isReady, PATIENCE_MS);
    await c.execute('block-job-complete', { device });
  }
};

const assertContent = async (
  { place, content, before, target }: Scene,
  copies: readonly string[],
): Promise<void> => {
  for (const path of [...copies.map(target), place.image('active-base.qcow2')]) {
    await assertClean(path);
    assert.equal(await content(path), before, path);
  }
};

test('jobs go on with the next mount, or are cancelled; both mounts say so, and no image is harmed', async (t) => {
  const scene = await sceneOf(t);
  const { place, kept, socket, state, before, content } = scene;

  const first = await place.mount(kept);
  let c = await QmpConnection.open(socket);
  await startAll(c, scene, (name) => name !== 'kept');
  c.close();
  const done = await vdiskfs(['umount', first.mountpoint]);
  assert.equal(done.status, 0, done.stderr);
  for (const name of GO_ON) {
    assert.match(done.stderr, new RegExp(`job ${name} \\(.*\\) waits for the next mount`));
    assert.match(first.log, new RegExp(`${name}: the next mount goes on`));
  }
  for (const name of ['backup', 'kept']) {
    assert.match(done.stderr, new RegExp(`job ${name} \\(backup\\) is cancelled`));
    assert.match(first.log, new RegExp(`${name}: cancelled, because the mount ends`));
  }
  for (const name of NAMES) {
    assert.equal(await content(place.image(`${name}.qcow2`)), before, `${name} is unharmed`);
    for (const layer of ['', '-mid', '-base'])
      await assertClean(place.image(`${name}${layer}.qcow2`));
  }

  const second = await place.mount(kept);
  c = await QmpConnection.open(socket);
  const said = [
    /stream: goes on/,
    /mirror: begins again: what its target lacks was known/,
    /active: begins again/,
    /layers: begins again/,
    /backup: was cancelled when the mount before ended: '.*backup-copy/,
  ];
  for (const line of said)
    await eventually(String(line), async () => line.test(second.log), PATIENCE_MS);
  const devices = (await jobsOf(c)).map(({ device }) => device);
  assert.deepEqual(devices.sort(), [...GO_ON, 'kept'].sort());
  const all = (await c.execute('query-jobs')) as readonly Ended[];
  const ended = all.find(({ id }) => id === 'kept');
  assert.deepEqual([ended?.status, ended?.error], ['concluded', 'Operation canceled']);
  await c.execute('job-dismiss', { id: 'kept' });
  await finish(c, GO_ON);
  await eventually('all end', async () => (await jobsOf(c)).length === 0, PATIENCE_MS);
  for (const name of GO_ON) assert.equal(await content(second.path(`${name}.raw`)), before, name);
  await second.unmount();
  await assertContent(scene, ['mirror']);
  const names = await readdir(state);
  assert.ok(!names.some((name) => name.endsWith('.job')), String(names));
});

test('an engine that dies: jobs of each kind go on in the next, and their results survive its death as well', async (t) => {
  const scene = await sceneOf(t);
  const { place, kept, socket, before, content } = scene;
  const mounted = await place.mount(kept);
  let c = await QmpConnection.open(socket);
  const pidOf = async (): Promise<number> =>
    ((await vdiskfsJson(['status', mounted.mountpoint])) as { pid: number }).pid;
  const kill = async (): Promise<void> => {
    const pid = await pidOf();
    c.close();
    process.kill(pid, 'SIGKILL');
    const isOther = async (): Promise<boolean> => (await pidOf().catch(() => pid)) !== pid;
    await eventually('another engine serves', isOther, PATIENCE_MS);
    c = await QmpConnection.open(socket);
  };
  await startAll(c, scene, () => false);
  await kill();
  const isThere = async (): Promise<boolean> => (await jobsOf(c)).length === NAMES.length;
  await eventually('all go on', isThere, PATIENCE_MS);
  for (const name of NAMES) assert.equal(await content(mounted.path(`${name}.raw`)), before, name);
  await finish(c, NAMES);
  const results = async (): Promise<readonly Ended[]> =>
    (await c.execute('query-jobs')) as readonly Ended[];
  const areEnded = async (): Promise<boolean> =>
    (await results()).every(({ status }) => status === 'concluded');
  await eventually('all end', areEnded, PATIENCE_MS);
  await kill();
  const areKept = async (): Promise<boolean> => (await results()).length === NAMES.length;
  await eventually('all results are there', areKept, PATIENCE_MS);
  for (const { id, status, error } of await results()) {
    assert.deepEqual([status, error], ['concluded', undefined], id);
    await c.execute('job-dismiss', { id });
  }
  c.close();
  for (const name of NAMES) assert.equal(await content(mounted.path(`${name}.raw`)), before, name);
  await mounted.unmount();
  await assertContent(scene, ['mirror', 'backup', 'kept']);
});

/** A full disk, and an empty one behind a server that can be frozen. */
const besideServer = async (
  t: Cleanup,
  { sizeMib, format }: { readonly sizeMib: number; readonly format: 'raw' | 'qcow2' },
) => {
  const place = await placeOf(t, subject);
  const source = place.image('vm.qcow2');
  const remote = join(place.root, 'remote');
  await qemuImg(['create', '-q', '-f', 'qcow2', source, `${sizeMib}M`]);
  await qemuImg(['create', '-q', '-f', format, remote, `${sizeMib}M`]);
  await qemuIo(source, [`write -q -P 7 0 ${sizeMib}M`]);
  const socket = join(place.root, 'socket');
  const listening = join(place.root, 'nbd.sock');
  const server = await qemuNbd(place.cleanup, listening, ['-f', format, remote]);
  const options = ['--socket', socket, '--state-dir', join(place.root, 'state')];
  return { place, source, server, socket, options };
};

/** A server is given up after 30 s of silence, and a request after a minute. */
const END_MS = 25_000;

test('a mount ends, and a job is cancelled, although the target does not answer', async (t) => {
  const scene = await besideServer(t, { sizeMib: 8, format: 'qcow2' });
  const { place, source, server, socket, options } = scene;
  const mounted = await place.mount(options);
  const c = await QmpConnection.open(socket);
  const limited = { device: 'vm', target: server.url, sync: 'full', mode: 'existing' };
  const begunMs = performance.now();
  for (const command of ['drive-backup', 'drive-mirror']) {
    await c.execute(command, { ...limited, speed: 1 << 20 });
    await sleep(300);
    await server.freeze();
    await c.execute('block-job-set-speed', { device: 'vm', speed: 0 });
    await sleep(300);
    if (command === 'drive-mirror') break;
    await c.execute('block-job-cancel', { device: 'vm' });
    await c.event('BLOCK_JOB_CANCELLED', END_MS);
    server.thaw();
    const isFree = async (): Promise<boolean> => (await jobsOf(c)).length === 0;
    await eventually('it is over', isFree, PATIENCE_MS);
    await sleep(500);
  }
  c.close();
  await mounted.unmount();
  const tookMs = performance.now() - begunMs;
  assert.ok(tookMs < END_MS, `${tookMs} ms`);
  assert.match(mounted.log, /warning nbd.*: does not answer for 5 s: it is left, and may be/);
  assert.doesNotMatch(mounted.log, /the last engine ended/);
  server.thaw();
  await assertClean(source);
});

/** In ms. */
const unmountTime = async (mounted: Mounted): Promise<number> => {
  const begunMs = performance.now();
  await mounted.unmount();
  return performance.now() - begunMs;
};

test('a mirror that was given up, because its target does not answer, keeps neither guest nor mount from their end', async (t) => {
  const scene = await besideServer(t, { sizeMib: 64, format: 'raw' });
  const { place, source, server, socket, options } = scene;
  const plainMs = await unmountTime(await place.mount(options));
  const mounted = await place.mount(options);
  const c = await QmpConnection.open(socket);
  const copyMode = { 'copy-mode': 'write-blocking' };
  const target = { target: server.url, sync: 'full', mode: 'existing' };
  await c.execute('drive-mirror', { device: 'vm', ...target, ...copyMode, speed: 4 << 20 });
  await sleep(300);
  await server.freeze();
  await c.execute('block-job-set-speed', { device: 'vm', speed: 0 });
  await sleep(300);
  const guest = await open(mounted.path('vm.raw'), 'r+');
  // Of what is being copied: it waits.
  const writes = Array.from({ length: 16 }, (_, i) =>
    guest.write(Buffer.alloc(4096, 9), 0, 4096, i << 22),
  );
  await c.execute('block-job-cancel', { device: 'vm', force: true });
  await c.event('BLOCK_JOB_CANCELLED', END_MS);
  await Promise.all(writes);
  await guest.sync();
  await guest.close();
  c.close();
  await sleep(GIVE_UP_MS);
  // It has had its time: the mount's end gives it no more.
  const tookMs = await unmountTime(mounted);
  assert.ok(tookMs < plainMs + GIVE_UP_MS - 1000, `${tookMs} ms, ${plainMs} without`);
  assert.doesNotMatch(mounted.log, /the last engine ended/);
  server.thaw();
  await assertClean(source);
});

test('a mount ends although a job that is taken up waits for a target that does not answer', async (t) => {
  const scene = await besideServer(t, { sizeMib: 8, format: 'raw' });
  const { place, source, server, socket, options } = scene;
  const first = await place.mount(options);
  const c = await QmpConnection.open(socket);
  const target = { target: server.url, sync: 'full', mode: 'existing', speed: 64 << 10 };
  await c.execute('drive-mirror', { device: 'vm', ...target });
  c.close();
  await first.unmount();
  await server.freeze();
  const mounted = await place.mount(options);
  const tookMs = await unmountTime(mounted);
  assert.ok(tookMs < END_MS, `${tookMs} ms`);
  assert.match(
    mounted.log,
    /warning jobs: those that go on.* are still being started after 5 s: the next engine, or mount/,
  );
  server.thaw();
  await assertClean(source);
});
