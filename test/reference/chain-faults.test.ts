/** Single faults in the steps of jobs that swap what a view stands on: what comes of them is the job's, never the guest's. */
import assert from 'node:assert/strict';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { guestOffset } from '../../src/base/units.ts';
import type { View } from '../../src/block/view.ts';
import { chainOf } from '../../src/control/context.ts';
import { layerFile, makeLayers } from '../support/chain-layers.ts';
import { EngineStand, imagesOf } from '../support/engine-stand.ts';
import { INJECTED, InjectedFaults } from '../support/injected-faults.ts';
import type { ByteModel } from '../support/model-guest.ts';
import { type Cleanup, scratchDirectory } from '../support/scratch.ts';

const KIB = 1024;
const BYTES = 256 * KIB;
/** For as long as it is armed. */
const ALL = { at: 1, count: Number.POSITIVE_INFINITY, isFull: false } as const;

interface Scene {
  readonly stand: EngineStand;
  readonly faults: InjectedFaults;
  readonly view: View;
  readonly model: ByteModel;
  readonly path: (name: string) => string;
}

/** `base` and `top` with a write of the guest that its image has not seen when it is closed. */
const chainScene = async (t: Cleanup): Promise<Scene> => {
  const directory = await scratchDirectory(t);
  const images = imagesOf(directory);
  await mkdir(images);
  const layer = { format: 'qcow2', lengthBytes: BYTES, clusterBytes: 64 * KIB } as const;
  const content = [{ kind: 'write', offset: 60 * KIB, lengthBytes: 100 * KIB }] as const;
  const layers = ['base', 'top'].map((name) => ({ ...layer, name, content }));
  const model = await makeLayers(images, layers);
  const faults = new InjectedFaults(1);
  const stand = await EngineStand.open({ directory, file: faults.file });
  t.after(async () => {
    faults.arm(null);
    await stand.close();
  });
  const view = await stand.view('top.raw');
  await view.write(guestOffset(200 * KIB), Buffer.alloc(KIB, 7));
  model.bytes.fill(7, 200 * KIB, 201 * KIB);
  return { stand, faults, view, model, path: (name) => join(images, name) };
};

const assertUnharmed = async ({ view, model, path }: Scene, chain: string[]): Promise<void> => {
  await view.write(guestOffset(0), Buffer.alloc(KIB, 9));
  model.bytes.fill(9, 0, KIB);
  const seen = Buffer.alloc(BYTES);
  await view.read(guestOffset(0), seen);
  assert.ok(seen.equals(model.bytes), 'what the guest sees');
  const paths = chainOf(await view.open()).map((node) => node.path);
  assert.deepEqual(
    paths,
    chain.map((name) => path(layerFile({ name, format: 'qcow2' }))),
  );
};

test('a chain that opens neither for a commit nor again is opened at the next request', async (t) => {
  const scene = await chainScene(t);
  const { stand, faults, path } = scene;
  faults.arm({ path: path('base.qcow2'), kind: 'read', ...ALL });
  await assert.rejects(stand.execute('block-commit', { device: 'top' }), INJECTED);
  faults.arm(null);
  await assertUnharmed(scene, ['top', 'base']);
});

test('a view that can neither go on over its overlay nor go back at once does so at the next request', async (t) => {
  const scene = await chainScene(t);
  const { stand, faults, path } = scene;
  faults.arm({ path: path('top.qcow2'), kind: 'read', ...ALL });
  const given = { device: 'top', 'snapshot-file': path('overlay.qcow2') };
  await assert.rejects(stand.execute('blockdev-snapshot-sync', given), INJECTED);
  faults.arm(null);
  await assertUnharmed(scene, ['top', 'base']);
});
