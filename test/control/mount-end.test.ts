/** A mount that ends while jobs run: no image is harmed, and both mounts say what becomes of each. */
import assert from 'node:assert/strict';
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { placeOf, KERNEL as subject } from '../mount/suite/subject.ts';
import { vdiskfs } from '../support/loaded-vdiskfs.ts';
import { eventually } from '../support/mounted.ts';
import { assertClean, contentSha256, qemuImg, qemuIo } from '../support/qemu-img.ts';
import { QmpConnection } from '../support/qmp.ts';

const PATIENCE_MS = 30_000;
const NAMES = ['stream', 'mirror', 'active', 'layers', 'backup', 'kept'];
/** Of the images that go on with the next mount. */
const GO_ON = ['stream', 'mirror', 'active', 'layers'];

interface Info {
  readonly device: string;
  readonly ready: boolean;
}

test('jobs go on with the next mount, or are cancelled; both mounts say so, and no image is harmed', async (t) => {
  const place = await placeOf(t, subject);
  const make = async (name: string, below: string | null): Promise<void> => {
    const link = below === null ? [] : ['-b', below, '-F', 'qcow2'];
    await qemuImg(['create', '-q', '-f', 'qcow2', ...link, place.image(name), '8M']);
  };
  for (const name of NAMES) {
    await make(`${name}-base.qcow2`, null);
    await qemuIo(place.image(`${name}-base.qcow2`), ['write -q -P 7 0 6M']);
    await make(`${name}-mid.qcow2`, `${name}-base.qcow2`);
    await qemuIo(place.image(`${name}-mid.qcow2`), ['write -q -P 8 1M 2M']);
    await make(`${name}.qcow2`, `${name}-mid.qcow2`);
    await qemuIo(place.image(`${name}.qcow2`), ['write -q -P 9 2M 2M']);
  }
  const content = (path: string): Promise<string> => contentSha256(path, join(place.root, 'flat'));
  const before = await content(place.image('stream.qcow2'));
  const socket = join(place.root, 'socket');
  const state = join(place.root, 'state');
  const kept = ['--socket', socket, '--state-dir', state];
  const target = (name: string): string => join(place.root, `${name}-copy.qcow2`);
  const of = (device: string): object => ({ device, speed: 1000 });

  const first = await place.mount(kept);
  let c = await QmpConnection.open(socket);
  await c.execute('block-stream', of('stream'));
  const copied = { sync: 'full', target: target('mirror') };
  await c.execute('drive-mirror', { ...of('mirror'), ...copied });
  await c.execute('block-commit', { ...of('active'), base: 'active-base.qcow2' });
  await c.execute('block-commit', { ...of('layers'), top: 'layers-mid.qcow2' });
  await c.execute('drive-backup', { ...of('backup'), sync: 'full', target: target('backup') });
  const last = { sync: 'full', target: target('kept'), 'auto-dismiss': false };
  await c.execute('drive-backup', { ...of('kept'), ...last });
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
  const jobs = async (): Promise<readonly Info[]> =>
    (await c.execute('query-block-jobs')) as readonly Info[];
  assert.deepEqual((await jobs()).map(({ device }) => device).sort(), [...GO_ON, 'kept'].sort());
  const all = (await c.execute('query-jobs')) as { id: string; status: string; error?: string }[];
  const ended = all.find(({ id }) => id === 'kept');
  assert.deepEqual([ended?.status, ended?.error], ['concluded', 'Operation canceled']);
  await c.execute('job-dismiss', { id: 'kept' });
  for (const device of GO_ON) await c.execute('block-job-set-speed', { device, speed: 0 });
  for (const device of ['mirror', 'active']) {
    const isReady = async (): Promise<boolean> =>
      (await jobs()).some((job) => job.device === device && job.ready);
    await eventually(`${device} is ready`, isReady, PATIENCE_MS);
    await c.execute('block-job-complete', { device });
  }
  await eventually('all end', async () => (await jobs()).length === 0, PATIENCE_MS);
  for (const name of GO_ON) assert.equal(await content(second.path(`${name}.raw`)), before, name);
  await second.unmount();
  for (const path of [target('mirror'), place.image('active-base.qcow2')]) {
    await assertClean(path);
    assert.equal(await content(path), before, path);
  }
  assert.deepEqual(
    (await readdir(state)).filter((name) => name.endsWith('.job')),
    [],
  );
});
