/**
 * In which order jobs bring things to the disk: what an image is about to rely on is flushed before it does. Every operation of
 * every file is seen; whether a file has writes that no flush has followed is what a power cut would ask.
 */
import assert from 'node:assert/strict';
import { readdir } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { HEADER } from '../../drivers/qcow2/layout.ts';
import { present } from '../../src/base/assert.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { View } from '../../src/block/view.ts';
import type { Job } from '../../src/job/job.ts';
import { bytesOfImage, layerFile, makeLayers } from '../support/chain-layers.ts';
import { delayedFile, type FileOperation } from '../support/delayed-file.ts';
import { EngineStand, standDirectory } from '../support/engine-stand.ts';
import type { Cleanup } from '../support/scratch.ts';

const KIB = 1024;
const CLUSTER = 64 * KIB;
const BYTES = 8 * CLUSTER;

/** What the kernel has not written yet when a command begins. */
const HELD_AT = guestOffset(3 * CLUSTER + 100);
const HELD = Buffer.from('written by a program before');

interface Seen {
  readonly operation: FileOperation;
  readonly offset: number;
  /** Names of files with writes that no flush has followed. */
  readonly dirty: readonly string[];
}

interface Scene {
  readonly stand: EngineStand;
  readonly view: View;
  readonly stateDirectory: string;
  readonly path: (name: string) => string;
  /** Called before each operation. */
  watch: (name: string, seen: Seen) => Promise<void>;
}

/** A chain of these qcow2 images, lowest first, each with two clusters of its own. */
const orderScene = async (t: Cleanup, names: readonly string[]): Promise<Scene> => {
  const { directory, images, opened } = await standDirectory(t);
  const layer = { format: 'qcow2', lengthBytes: BYTES, clusterBytes: CLUSTER } as const;
  await makeLayers(
    images,
    names.map((name, index) => ({
      ...layer,
      name,
      content: [{ kind: 'write', offset: index * CLUSTER, lengthBytes: 2 * CLUSTER }],
    })),
  );
  const dirty = new Set<string>();
  const scene: { current: Scene | null } = { current: null };
  const file = delayedFile(null, {
    before: async (operation, offset, length, path) => {
      const name = path.slice(images.length + 1).replace('.qcow2', '');
      await scene.current?.watch(name, { operation, offset, dirty: [...dirty] });
      // Of no use after a power cut: see drivers/qcow2/journal-mark.ts.
      const isMark = offset === HEADER.autoclear && length <= 8;
      if ((operation === 'write' && !isMark) || operation === 'zero') dirty.add(name);
      if (operation === 'flush') dirty.delete(name);
    },
  });
  const sync = (of: View): Promise<void> => of.write(HELD_AT, HELD);
  const stand = await EngineStand.open({ directory, file, sync });
  opened.push(stand);
  const view = await stand.view(`${names.at(-1)}.raw`);
  await view.write(guestOffset(6 * CLUSTER), Buffer.alloc(KIB, 9));
  const path = (name: string): string => join(images, layerFile({ name, format: 'qcow2' }));
  const stateDirectory = join(directory, 'state');
  scene.current = { stand, view, stateDirectory, path, watch: async () => undefined };
  return scene.current;
};

const begin = async (
  { stand }: Scene,
  command: string,
  given: Readonly<Record<string, unknown>>,
): Promise<Job> => {
  await stand.execute(command, { 'job-id': 'job', 'auto-dismiss': false, ...given });
  return present(stand.job('job'), 'the job has begun');
};

test('a commit of layers: the header that names the base is written when the base is on the disk', async (t) => {
  const s = await orderScene(t, ['base', 'mid', 'top']);
  const headers: Seen[] = [];
  s.watch = async (name, seen) => {
    if (name === 'top' && seen.operation === 'write' && seen.offset < CLUSTER) headers.push(seen);
  };
  const job = await begin(s, 'block-commit', { device: 'top', top: s.path('mid') });
  await job.concluded;
  assert.equal(job.error, null);
  assert.ok(headers.length > 0, 'the header was written');
  for (const { dirty } of headers) assert.ok(!dirty.includes('base'), dirty.join(' '));
});

test('a commit of the image itself: it gives up nothing before the base is on the disk', async (t) => {
  const s = await orderScene(t, ['base', 'top']);
  const given: Seen[] = [];
  const job = await begin(s, 'block-commit', { device: 'top' });
  while (job.status !== 'ready') await sleep(2);
  await s.view.flush();
  // Of the last moment, which the guest is held for.
  await s.view.write(guestOffset(7 * CLUSTER), Buffer.alloc(KIB, 8));
  await s.view.flush();
  s.watch = async (name, seen) => {
    if (name === 'top' && seen.operation === 'write') given.push(seen);
  };
  job.complete();
  await job.concluded;
  assert.equal(job.error, null);
  assert.ok(given.length > 0, 'it was emptied');
  for (const { dirty } of given) assert.ok(!dirty.includes('base'), dirty.join(' '));
});

test('a stream: the header that drops the layers is written when what they had is on the disk', async (t) => {
  const s = await orderScene(t, ['base', 'mid', 'top']);
  const headers: Seen[] = [];
  s.watch = async (name, seen) => {
    if (name === 'top' && seen.operation === 'write' && seen.offset < CLUSTER) headers.push(seen);
  };
  const job = await begin(s, 'block-stream', { device: 'top' });
  await job.concluded;
  assert.equal(job.error, null);
  const [first] = headers;
  assert.deepEqual(present(first, 'the header was written').dirty, []);
});

test('an external snapshot: overlay and image are on the disk before the view stands for the overlay', async (t) => {
  const s = await orderScene(t, ['top']);
  const afterRecord: string[] = [];
  s.watch = async (_name, { dirty }) => {
    const state = await readdir(s.stateDirectory).catch(() => []);
    if (state.some((name) => name.endsWith('.view'))) afterRecord.push(...dirty);
  };
  await s.stand.execute('blockdev-snapshot-sync', {
    device: 'top',
    'snapshot-file': s.path('overlay'),
  });
  s.watch = async () => undefined;
  assert.deepEqual(afterRecord, []);
});

test('a backup is done when its target is on the disk', async (t) => {
  const s = await orderScene(t, ['top']);
  let last: readonly string[] = ['copy'];
  const dirty = new Set<string>();
  s.watch = async (name, { operation }) => {
    if (name !== 'copy' || operation === 'read') return;
    if (operation === 'flush') dirty.delete(name);
    else dirty.add(name);
    last = [...dirty];
  };
  const job = await begin(s, 'drive-backup', {
    device: 'top',
    sync: 'full',
    target: s.path('copy'),
    'auto-finalize': false,
  });
  while (job.status !== 'pending') await sleep(2);
  assert.deepEqual(last, []);
  job.finalize();
  await job.concluded;
  assert.equal(job.error, null);
});

for (const [command, given, image] of [
  ['blockdev-snapshot-sync', { 'snapshot-file': 'overlay' }, 'top'],
  ['drive-backup', { sync: 'full', target: 'copy', 'auto-dismiss': false }, 'copy'],
] as const) {
  test(`${command}: what the kernel still holds is in it`, async (t) => {
    const s = await orderScene(t, ['top']);
    const paths = Object.entries(given).map(([key, value]) =>
      value === 'overlay' || value === 'copy' ? [key, s.path(value)] : [key, value],
    );
    await s.stand.execute(command, { device: 'top', ...Object.fromEntries(paths) });
    await s.stand.job('top')?.concluded;
    await s.stand.close();
    const bytes = await bytesOfImage(dirname(s.path(image)), s.path(image), 'qcow2');
    assert.ok(bytes.subarray(HELD_AT, HELD_AT + HELD.length).equals(HELD));
  });
}
