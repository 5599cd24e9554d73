/** Single faults in the steps of jobs that swap what a view stands on: what comes of them is the job's, never the guest's. */
import assert from 'node:assert/strict';
import { open, rm, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import type { StandIns } from '../../mount/catalog/stand-ins.ts';
import { present } from '../../src/base/assert.ts';
import { BlockError } from '../../src/base/block-error.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { View } from '../../src/block/view.ts';
import { chainOf } from '../../src/control/context.ts';
import { layerFile, makeLayers } from '../support/chain-layers.ts';
import { EngineStand, type EngineStandOptions, standDirectory } from '../support/engine-stand.ts';
import { INJECTED, InjectedFaults, isInjected } from '../support/injected-faults.ts';
import type { ByteModel } from '../support/model-guest.ts';
import type { Cleanup } from '../support/scratch.ts';

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
  readonly stateDirectory: string;
}

/** A chain of these images, with a write of the guest that has not reached the disk. */
const chainScene = async (
  t: Cleanup,
  names = ['base', 'top'],
  options: Partial<EngineStandOptions> = {},
): Promise<Scene> => {
  const { directory, images, opened } = await standDirectory(t);
  const layer = { format: 'qcow2', lengthBytes: BYTES, clusterBytes: 64 * KIB } as const;
  const layers = names.map((name, index) => ({
    ...layer,
    name,
    content: [{ kind: 'write', offset: 60 * (index + 1) * KIB, lengthBytes: 90 * KIB }] as const,
  }));
  const model = await makeLayers(images, layers);
  const faults = new InjectedFaults(1);
  const stand = await EngineStand.open({ directory, file: faults.file, ...options });
  opened.push(stand);
  const view = await stand.view('top.raw');
  await view.write(guestOffset(200 * KIB), Buffer.alloc(KIB, 7));
  model.bytes.fill(7, 200 * KIB, 201 * KIB);
  const stateDirectory = join(directory, 'state');
  return { stand, faults, view, model, path: (name) => join(images, name), stateDirectory };
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

const READS = [2, 4, 5, 6, 7].map(
  (count) => ({ faulty: 'base.qcow2', kind: 'read', count }) as const,
);
/** Of the end of the first opening, and of what the later ones take up of it. */
const FLUSHES = [2, 3, 4, 5].map(
  (count) => ({ faulty: 'top.qcow2', kind: 'flush', count }) as const,
);

for (const { faulty, kind, count } of [...READS, ...FLUSHES]) {
  test(`a chain that does not open for a commit, nor again perhaps (${kind} of ${faulty} fails ${count} times), is opened at the next request`, async (t) => {
    const scene = await chainScene(t);
    const { stand, faults, path, view } = scene;
    faults.arm({ path: path(faulty), kind, ...ALL, count });
    const command = stand.execute('block-commit', { device: 'top', 'job-id': 'job' });
    const isOver = command.then(
      () => true,
      () => true,
    );
    // What it writes changes the file until it is held; then it goes on at once. What it writes in the end is known.
    while (!(await Promise.race([isOver, sleep(1)]))) {
      await view.write(guestOffset(0), Buffer.alloc(KIB, 1)).catch((error: unknown) => {
        if (!isInjected(error)) throw error;
      });
    }
    await command.catch((error: unknown) => assert.ok(isInjected(error), String(error)));
    faults.arm(null);
    const job = stand.job('job');
    job?.cancel({ force: true });
    await job?.concluded;
    await assertUnharmed(scene, ['top', 'base']);
  });
}

test('a view that can neither go on over its overlay nor go back at once does so at the next request', async (t) => {
  const scene = await chainScene(t);
  const { stand, faults, path } = scene;
  faults.arm({ path: path('top.qcow2'), kind: 'read', ...ALL });
  const given = { device: 'top', 'snapshot-file': path('overlay.qcow2') };
  await assert.rejects(stand.execute('blockdev-snapshot-sync', given), INJECTED);
  faults.arm(null);
  await assertUnharmed(scene, ['top', 'base']);
});

/** A commit of the image into the base, as far as that `arm` can see to it that it fails in the end. */
const commitToBase = async ({ stand }: Scene, arm: () => unknown): Promise<string | null> => {
  await stand.execute('block-commit', { device: 'top', 'job-id': 'job' });
  const job = present(stand.job('job'), 'the job has begun');
  while (job.status !== 'ready') await sleep(2);
  await arm();
  job.complete();
  await job.concluded;
  return job.error;
};

for (const count of [1, 2, 3, ALL.count]) {
  test(`reads of the base that fail while a view goes down to it (${count} from any one on): nothing stays open beside the view's chain`, async (t) => {
    const scene = await chainScene(t);
    const { stand, faults, path, view } = scene;
    const fault = { path: path('base.qcow2'), kind: 'read', isFull: false, count } as const;
    let failures = 0;
    for (let at = 1; ; at++) {
      const error = await commitToBase(scene, () => faults.arm({ ...fault, at }));
      faults.arm(null);
      if (error === null) break;
      assert.match(error, INJECTED);
      failures++;
      if (count < 3) assert.equal(view.root?.isOpen, true, 'it is back at the end of the job');
      await assertUnharmed(scene, ['top', 'base']);
      assert.equal(stand.graph.nodes.size, 2);
    }
    assert.ok(failures > 1, 'the one that opens it, and the one that looks at it then');
    await assertUnharmed(scene, ['base']);
    assert.equal(stand.graph.nodes.size, 1);
    const unexpected = stand.lines.filter((line) => /error /.test(line) && !isInjected(line));
    assert.deepEqual(unexpected, []);
  });
}

test('a view that cannot be remembered to stand for a layer of its own keeps its whole chain', async (t) => {
  const scene = await chainScene(t, ['base', 'mid', 'top']);
  const { stand, stateDirectory } = scene;
  const error = await commitToBase(scene, async () => {
    await rm(stateDirectory, { recursive: true, force: true });
    await writeFile(stateDirectory, '');
  });
  await rm(stateDirectory);
  assert.match(error ?? '', /already exists|not a directory/);
  await assertUnharmed(scene, ['top', 'mid', 'base']);
  assert.equal(stand.graph.nodes.size, 3);
});

/** A record of what a view stands for is made, and cannot be changed or removed afterwards. */
const madeOnce = (store: StandIns): StandIns => {
  let isMade = false;
  const once = async (change: () => Promise<void>): Promise<void> => {
    if (isMade) throw new BlockError({ kind: 'io', message: 'the fault of this test' });
    isMade = true;
    await change();
  };
  return {
    get all() {
      return store.all;
    },
    put: (record) => once(() => store.put(record)),
    remove: (original) => once(() => store.remove(original)),
  };
};

/** What a later mount shows. */
const assertLaterMount = async (scene: Scene, chain: string[]): Promise<void> => {
  await scene.stand.close();
  const later = await EngineStand.open({ directory: dirname(scene.stateDirectory) });
  try {
    await assertUnharmed({ ...scene, stand: later, view: await later.view('top.raw') }, chain);
  } finally {
    await later.close();
  }
};

for (const { what, count } of [
  { what: 'opens at once', count: 1 },
  { what: 'does not open for a while', count: ALL.count },
]) {
  test(`a view whose record cannot be taken back goes on over what is recorded, which ${what}`, async (t) => {
    const scene = await chainScene(t, ['base', 'top'], { standIns: madeOnce });
    const { stand, faults, path, view } = scene;
    let reads = 0;
    const error = await commitToBase(scene, () => {
      const base = present(
        [...stand.graph.nodes].find((node) => node.path === path('base.qcow2')),
        'it',
      );
      const close = base.close.bind(base);
      // From here on it is opened again.
      base.close = async () => {
        await close();
        faults.arm({ path: path('base.qcow2'), kind: 'read', ...ALL, count });
        reads++;
      };
    });
    assert.equal(reads, 1);
    assert.equal(error, null, 'it is done');
    assert.ok(stand.lines.some((line) => /recorded, and not taken back/.test(line)));
    if (count === 1) assert.equal(view.root?.isOpen, true);
    else await assert.rejects(view.read(guestOffset(0), Buffer.alloc(KIB)), INJECTED);
    faults.arm(null);
    await assertUnharmed(scene, ['base']);
    await assertLaterMount(scene, ['base']);
  });
}

test('an overlay that is recorded, and cannot be gone back from, stays, and the view stands on it', async (t) => {
  const scene = await chainScene(t, ['base', 'top'], { standIns: madeOnce });
  const { stand, faults, path } = scene;
  faults.arm({ path: path('top.qcow2'), kind: 'read', ...ALL });
  await stand.execute('blockdev-snapshot-sync', {
    device: 'top',
    'snapshot-file': path('overlay.qcow2'),
  });
  faults.arm(null);
  await assertUnharmed(scene, ['overlay', 'top', 'base']);
  await assertLaterMount(scene, ['overlay', 'top', 'base']);
});

test('a target that does not close well is not gone on with, and nothing stays open', async (t) => {
  const scene = await chainScene(t);
  const { graph } = scene.stand;
  const error = await commitToBase(scene, () => {
    const base = present(
      [...graph.nodes].find((n) => !n.readOnly && n.backing === null),
      'it',
    );
    const close = base.close.bind(base);
    base.close = async () => {
      await close();
      throw new BlockError({ kind: 'io', message: 'the fault of this test' });
    };
  });
  assert.match(error ?? '', INJECTED);
  await assertUnharmed(scene, ['top', 'base']);
  assert.equal(graph.nodes.size, 2);
});

const JOBS = [
  { command: 'block-commit', given: {}, faulty: 'base.qcow2', kind: 'write' },
  { command: 'block-commit', given: {}, faulty: 'base.qcow2', kind: 'flush' },
  { command: 'block-commit', given: { top: 'mid.qcow2' }, faulty: 'base.qcow2', kind: 'write' },
  { command: 'block-commit', given: { top: 'mid.qcow2' }, faulty: 'base.qcow2', kind: 'flush' },
  { command: 'block-stream', given: {}, faulty: 'mid.qcow2', kind: 'read' },
  { command: 'block-stream', given: {}, faulty: 'top.qcow2', kind: 'write' },
  { command: 'block-stream', given: {}, faulty: 'top.qcow2', kind: 'flush' },
  { command: 'drive-backup', given: { sync: 'full' }, faulty: 'copy.qcow2', kind: 'write' },
  { command: 'drive-backup', given: { sync: 'full' }, faulty: 'copy.qcow2', kind: 'flush' },
] as const;

for (const { command, given, faulty, kind } of JOBS) {
  for (const policy of ['report', 'ignore']) {
    const of = Object.hasOwn(given, 'top') ? ' of a layer' : '';
    test(`${command}${of}: a ${kind} of ${faulty} that fails, ${policy}: an error, and the chain stays`, async (t) => {
      const scene = await chainScene(t, ['base', 'mid', 'top']);
      const { stand, faults, path } = scene;
      const onError =
        command === 'drive-backup'
          ? { 'on-source-error': policy, 'on-target-error': policy, target: path('copy.qcow2') }
          : { 'on-error': policy };
      const common = { device: 'top', 'job-id': 'job', 'auto-dismiss': false, speed: 1 };
      await stand.execute(command, { ...common, ...onError, ...given });
      // One write alone, so that nothing else meets it, such as a flush; but what a mirror ignores it tries again.
      const isActive = command === 'block-commit' && of === '';
      const count = kind === 'write' && !isActive ? 1 : ALL.count;
      faults.arm({ path: path(faulty), kind, ...ALL, count });
      const job = present(stand.job('job'), 'the job has begun');
      job.setSpeed(0);
      // One that ignores what fails tries it again for ever, when it has to get there.
      if (isActive && kind === 'write' && policy === 'ignore') {
        await sleep(200);
        job.cancel({ force: true });
      }
      await job.concluded;
      faults.arm(null);
      assert.match(job.error ?? '', /the fault of this test|Operation canceled/);
      await assertUnharmed(scene, ['top', 'mid', 'base']);
    });
  }
}

/** What the header of the view's image says now of what lies below it. */
const namedBelow = async ({ view }: Scene): Promise<string | null> => {
  const { descriptor, file, path } = await view.open();
  const header = await descriptor.inspect?.(present(file, 'an image has a file'), path);
  return header?.backing?.filename ?? null;
};

for (const { command, given, left } of [
  { command: 'block-stream', given: {}, left: ['top'] },
  { command: 'block-stream', given: { base: 'base.qcow2' }, left: ['top', 'base'] },
  { command: 'block-commit', given: { top: 'mid.qcow2' }, left: ['top', 'base'] },
]) {
  test(`${command} to ${left}: whichever flush of the image fails, its header names what the view stands on`, async (t) => {
    const scene = await chainScene(t, ['base', 'mid', 'top']);
    const { stand, faults, path } = scene;
    let failures = 0;
    for (let attempt = 0; ; attempt++) {
      // Each twice: there is less to flush after one that has failed late.
      const at = 1 + Math.floor(attempt / 2);
      faults.arm({ path: path('top.qcow2'), kind: 'flush', at, count: 1, isFull: false });
      const common = { device: 'top', 'job-id': 'job', 'auto-dismiss': false, ...given };
      const refusal = await stand.execute(command, common).then(
        () => null,
        (error: unknown) => String(error),
      );
      const job = stand.job('job');
      await job?.concluded;
      faults.arm(null);
      const failure = refusal ?? job?.error ?? null;
      job?.dismiss();
      const isDone = failure === null;
      if (!isDone) assert.match(failure, INJECTED);
      const chain = isDone ? left : ['top', 'mid', 'base'];
      assert.equal(await namedBelow(scene), chain.length === 1 ? null : `${chain[1]}.qcow2`);
      await assertUnharmed(scene, chain);
      if (isDone) break;
      failures++;
    }
    assert.ok(failures > 1, 'the one before the header is written, and the one after');
    await assertLaterMount(scene, left);
  });
}

test('a write of the guest that fails half way leaves a mirror that writes through in step with the image', async (t) => {
  const scene = await chainScene(t, ['top']);
  const { stand, faults, path, view } = scene;
  const at = guestOffset(70 * KIB);
  await stand.execute('drive-mirror', {
    device: 'top',
    'job-id': 'job',
    'auto-dismiss': false,
    'copy-mode': 'write-blocking',
    sync: 'full',
    target: path('copy.qcow2'),
  });
  const job = present(stand.job('job'), 'the job has begun');
  while (job.status !== 'ready') await sleep(2);
  const torn = async (offset: number): Promise<void> => {
    const file = await open(path('top.qcow2'), 'r+');
    await file.write(Buffer.alloc(512, 0xee), 0, 512, offset);
    await file.close();
  };
  faults.arm({ path: path('top.qcow2'), kind: 'write', ...ALL, count: 1, torn });
  await assert.rejects(view.write(at, Buffer.alloc(KIB, 5)), INJECTED);
  faults.arm(null);
  const seen = Buffer.alloc(KIB);
  await view.read(at, seen);
  assert.equal(seen[0], 0xee, 'a part of it is there');
  job.complete();
  await job.concluded;
  assert.equal(job.error, null);
  const after = Buffer.alloc(KIB);
  await view.read(at, after);
  assert.ok(after.equals(seen), 'what the view shows is the same over the target');
});

test('a view that comes back to its own image, by a commit of its overlay, is the same view', async (t) => {
  const scene = await chainScene(t);
  const { stand, path, view } = scene;
  await stand.execute('blockdev-snapshot-sync', {
    device: 'top',
    'snapshot-file': path('overlay.qcow2'),
  });
  await view.write(guestOffset(10 * KIB), Buffer.alloc(KIB, 4));
  scene.model.bytes.fill(4, 10 * KIB, 11 * KIB);
  const base = path('top.qcow2');
  await stand.execute('block-commit', {
    device: 'top',
    'job-id': 'job',
    'auto-dismiss': false,
    base,
  });
  const job = present(stand.job('job'), 'the job has begun');
  while (job.status !== 'ready') await sleep(2);
  job.complete();
  await job.concluded;
  assert.equal(job.error, null);
  assert.equal(await stand.view('top.raw'), view);
  await assertUnharmed(scene, ['top', 'base']);
});

test('what a guest gives up past the end of a short layer is zeros when a stream has dropped that', async (t) => {
  const { directory, images, opened } = await standDirectory(t);
  const write = (offset: number, lengthBytes: number) =>
    ({ kind: 'write', offset, lengthBytes }) as const;
  const layer = { format: 'qcow2', clusterBytes: 64 * KIB } as const;
  await makeLayers(images, [
    { ...layer, name: 'base', lengthBytes: BYTES, content: [write(0, BYTES)] },
    { ...layer, name: 'mid', lengthBytes: BYTES / 2, content: [write(0, KIB)] },
    { ...layer, name: 'top', lengthBytes: BYTES, content: [write(192 * KIB, 64 * KIB)] },
  ]);
  const stand = await EngineStand.open({ directory });
  opened.push(stand);
  const view = await stand.view('top.raw');
  const ofJob = { 'job-id': 'job', 'auto-dismiss': false, 'auto-finalize': false };
  const base = join(images, 'base.qcow2');
  await stand.execute('block-stream', { device: 'top', base, ...ofJob });
  const job = present(stand.job('job'), 'the job has begun');
  while (job.status !== 'pending') await sleep(2);
  await view.punchHole(guestOffset(192 * KIB), 64 * KIB);
  job.finalize();
  await job.concluded;
  assert.equal(job.error, null);
  const seen = Buffer.alloc(BYTES / 2);
  await view.read(guestOffset(BYTES / 2), seen);
  assert.ok(seen.every((byte) => byte === 0));
});
