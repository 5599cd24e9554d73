/** Mirrors, one promise at a time: copy modes, sync modes, lengths, ends. */
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { guestOffset } from '../../src/base/units.ts';
import type { DirtyBitmap } from '../../src/block/dirty-bitmap.ts';
import type { Node } from '../../src/block/node.ts';
import { BitmapFile } from '../../src/job/bitmap-file.ts';
import {
  assertSame,
  ended,
  errorsOf,
  failing,
  fault,
  KIB,
  MIB,
  mirrorScene,
  nothing,
  put,
} from '../support/mirror-scene.ts';
import { MirrorStand } from '../support/mirror-stand.ts';
import { assertClean, qemuImg, qemuImgJson } from '../support/qemu-img.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { until } from '../support/until.ts';

test('what is read for a copy is what the write left that made it dirty, also one that takes long', async (t) => {
  const { stand, on } = await mirrorScene(t);
  await put(stand, 0, MIB, 1);
  const job = await stand.mirror();
  await stand.readyOrEnded(job);
  let release = (): void => undefined;
  const held = new Promise<void>((resolve) => {
    release = resolve;
  });
  on.source = async (operation) => {
    if (operation === 'write') await held;
  };
  const written = put(stand, 128 * KIB, 64 * KIB, 2);
  // The target gets nothing before; a mirror that did not wait would be done with it by then.
  on.target = async (operation) => {
    if (operation === 'write') release();
  };
  await Promise.race([held, sleep(500)]);
  release();
  await written;
  job.cancel({ force: false });
  await ended(job);
  assert.equal(job.error, null);
  await assertSame(stand);
});

test('write-blocking: an engine that dies while the target is written knows what it lacks', async (t) => {
  const { stand, on } = await mirrorScene(t);
  const path = join(stand.source, '..', 'bits');
  const scope = { instance: 'this', source: stand.source, target: stand.target };
  const dirty = (): number => {
    const loaded = BitmapFile.load(path, { ...scope, lengthBytes: stand.root.lengthBytes });
    loaded?.file.close();
    return loaded?.content.dirtyBytes ?? -1;
  };
  const kept = {
    resumed: null,
    create: (content: DirtyBitmap) => BitmapFile.create(path, scope, content),
    outlives: () => false,
  };
  await put(stand, 0, MIB, 1);
  const job = await stand.mirror({ copyMode: 'write-blocking', kept });
  await stand.readyOrEnded(job);
  assert.equal(dirty(), 0);
  const seen: number[] = [];
  on.target = async (operation) => {
    if (operation === 'write') seen.push(dirty());
  };
  on.source = async (operation) => {
    if (operation === 'write') seen.push(dirty());
  };
  await put(stand, 70 * KIB, 4 * KIB, 2);
  assert.deepEqual(seen, [64 * KIB, 64 * KIB], 'before the source is written, and the target');
  assert.equal(dirty(), 0);
  job.cancel({ force: true });
  await ended(job);
  assert.equal(dirty(), -1, 'it is gone with the job');
  await stand.view.close();
});

test('write-blocking: a write that fails at the target is answered, dirty, and copied later', async (t) => {
  const { stand, on } = await mirrorScene(t);
  const job = await stand.mirror({ copyMode: 'write-blocking', onTargetError: 'ignore' });
  await stand.readyOrEnded(job);
  on.target = failing('write', 1);
  await put(stand, 100 * KIB, 8 * KIB, 3);
  assert.equal(errorsOf(stand).length, 1);
  await until('it is in step again', () => job.blockJobInfo()['actively-synced'] === true);
  job.cancel({ force: false });
  await ended(job);
  assert.equal(job.error, null);
  await assertSame(stand);
});

test('write-blocking: what was answered is in the target already', async (t) => {
  const { stand } = await mirrorScene(t, { target: 'qcow2' });
  const job = await stand.mirror({ copyMode: 'write-blocking' });
  await stand.readyOrEnded(job);
  for (let i = 0; i < 20; i++) {
    await put(stand, i * 300 * KIB, 1000 + i, 1 + i);
    const seen = Buffer.alloc(1000 + i);
    await (stand.targetNode as Node).read(guestOffset(i * 300 * KIB), seen);
    assert.ok(
      seen.every((byte) => byte === 1 + i),
      `write ${i}`,
    );
    assert.equal(job.blockJobInfo()['actively-synced'], true);
  }
  job.complete();
  await ended(job);
  await stand.view.close();
  await assertClean(stand.target);
});

test('a mirror that gets ready is as long as it has come, also when a guest writes at that moment', async (t) => {
  const { stand, on } = await mirrorScene(t);
  await put(stand, 0, MIB, 1);
  on.target = async (operation) => {
    if (operation !== 'flush') return;
    on.target = nothing;
    await put(stand, 2 * MIB, 64 * KIB, 2);
  };
  const job = await stand.mirror();
  await stand.readyOrEnded(job);
  const ready = stand.events.find(({ name }) => name === 'BLOCK_JOB_READY');
  assert.equal(ready?.data['offset'], ready?.data['len']);
  await until('it follows', () => job.blockJobInfo().len >= MIB + 64 * KIB);
  job.cancel({ force: false });
  await ended(job);
  assert.equal(job.blockJobInfo().offset, job.blockJobInfo().len);
  await assertSame(stand);
});

test('zeros stay holes, and an existing target is zeroed where it has to be', async (t) => {
  for (const targetIsZero of [true, false]) {
    const { stand } = await mirrorScene(t, { target: 'qcow2', lengthBytes: 64 * MIB });
    if (!targetIsZero) await dirtyTarget(stand);
    await put(stand, 3 * MIB, 64 * KIB, 5);
    await put(stand, 40 * MIB, 64 * KIB, 6);
    const job = await stand.mirror({ targetIsZero });
    await stand.readyOrEnded(job);
    job.cancel({ force: false });
    await ended(job);
    assert.equal(job.error, null);
    await assertSame(stand);
    const map = (await qemuImgJson('map', [stand.target])) as { data: boolean; length: number }[];
    const data = map.filter((run) => run.data).reduce((sum, run) => sum + run.length, 0);
    assert.equal(data, 128 * KIB);
    await assertClean(stand.target);
  }
});

/** Somebody's old content. */
const dirtyTarget = async ({ graph, target }: MirrorStand): Promise<void> => {
  const node = await graph.open({ path: target, format: 'qcow2', readOnly: false });
  await node.write(guestOffset(10 * MIB), Buffer.alloc(MIB, 0xee));
  await node.write(guestOffset(3 * MIB), Buffer.alloc(MIB, 0xee));
  await graph.close(node);
};

for (const mode of ['on-success', 'never', 'always'] as const) {
  test(`sync bitmap copies what the bitmap has; ${mode}: what is left in it`, async (t) => {
    for (const fails of [false, true]) {
      const { stand, on } = await mirrorScene(t);
      await put(stand, 0, MIB, 1);
      const { root } = stand;
      const bitmap = await root.dirtyBitmaps.start(64 * KIB);
      await put(stand, 2 * MIB, 64 * KIB, 3);
      await put(stand, 4 * MIB, 64 * KIB, 3);
      bitmap.user = "job 'disk'";
      let writes = 0;
      if (fails) {
        on.target = async (operation) => {
          if (operation === 'write' && ++writes === 2) throw fault();
        };
      }
      const job = await stand.mirror({ sync: 'bitmap', bitmap, bitmapMode: mode });
      await stand.readyOrEnded(job);
      if (!fails) job.cancel({ force: false });
      await ended(job);
      assert.equal(job.error === null, !fails);
      assert.equal(bitmap.user, null);
      // In all, what was dirty; `always` gives back only what was not copied.
      const left = fails
        ? mode === 'always'
          ? 64 * KIB
          : 128 * KIB
        : mode === 'never'
          ? 128 * KIB
          : 0;
      assert.equal(bitmap.content.dirtyBytes, left);
      const target = await readFile(stand.target);
      assert.equal(target[0], 0, 'what was not dirty is not copied');
      if (!fails) assert.equal(target[2 * MIB], 3);
      await stand.view.close();
    }
  });
}

for (const end of ['hangs', 'fails'] as const) {
  test(`always: what is on its way to a target that ${end} when the job is cancelled is left in the bitmap`, async (t) => {
    const { stand, on } = await mirrorScene(t);
    const { root } = stand;
    const bitmap = await root.dirtyBitmaps.start(64 * KIB);
    await put(stand, 2 * MIB, 64 * KIB, 3);
    bitmap.user = "job 'disk'";
    let begun = (): void => undefined;
    const isWriting = new Promise<void>((resolve) => {
      begun = resolve;
    });
    let release = (): void => undefined;
    const held = new Promise<void>((resolve) => {
      release = resolve;
    });
    on.target = async (operation) => {
      if (operation !== 'write') return;
      begun();
      await held;
      throw fault();
    };
    const job = await stand.mirror({ sync: 'bitmap', bitmap, bitmapMode: 'always' });
    await isWriting;
    assert.equal(job.blockJobInfo().offset, 0);
    job.cancel({ force: true });
    if (end === 'fails') release();
    await ended(job);
    assert.ok(bitmap.content.nextDirty(0, 16 * MIB) !== null, 'it is not in the target');
    assert.equal(bitmap.content.dirtyBytes, 64 * KIB);
    release();
    await stand.view.close();
  });
}

test('a disk that grows meanwhile grows its target', async (t) => {
  const { stand } = await mirrorScene(t, { target: 'qcow2' });
  await put(stand, 0, MIB, 1);
  const job = await stand.mirror({ copyMode: 'write-blocking' });
  await stand.readyOrEnded(job);
  await put(stand, 9 * MIB + 5, 507, 2);
  job.complete();
  await ended(job);
  assert.equal(job.error, null);
  assert.equal(stand.root.lengthBytes, 9 * MIB + 512);
  await stand.view.close();
  const seen = join(stand.target, '..', 'seen');
  await qemuImg(['convert', '-f', 'qcow2', '-O', 'raw', stand.target, seen]);
  const bytes = await readFile(seen);
  assert.ok(bytes.subarray(9 * MIB + 5, 9 * MIB + 512).every((byte) => byte === 2));
});

test('a disk of an odd size moves to a raw file, but not to a format of whole sectors', async (t) => {
  for (const target of ['raw', 'qcow2']) {
    const { stand } = await mirrorScene(t, { target, lengthBytes: MIB });
    await put(stand, 0, MIB + 100, 1);
    const job = await stand.mirror();
    await stand.readyOrEnded(job);
    if (target === 'raw') job.complete();
    else {
      assert.throws(() => job.complete(), /has 1049088 bytes, and the disk 1048676/);
      job.cancel({ force: false });
    }
    await ended(job);
    assert.equal(job.error, null);
    assert.equal(stand.root.lengthBytes, MIB + 100);
    await stand.view.close();
  }
});

test('auto-finalize off: the guest goes on while it is pending, and the pivot has all of it', async (t) => {
  const { stand } = await mirrorScene(t);
  await put(stand, 0, MIB, 1);
  const job = await stand.mirror({ autoFinalize: false });
  await stand.readyOrEnded(job);
  job.complete();
  await until('it is pending', () => job.status === 'pending');
  await put(stand, 0, 2 * MIB, 7);
  assert.equal(stand.root.path, stand.source);
  job.finalize();
  await ended(job);
  assert.equal(job.error, null);
  assert.equal(stand.root.path, stand.target);
  await assertSame(stand);
});

test('copies of cached pages let others have their turn', async (t) => {
  const directory = await scratchDirectory(t);
  const lengthBytes = 128 * MIB;
  const options = { directory, sourceFormat: 'raw', targetFormat: 'raw', lengthBytes };
  const stand = await MirrorStand.open(options);
  t.after(async () => stand.abandon());
  // Every other granule: pieces that are copied at once.
  for (let at = 0; at < lengthBytes; at += 128 * KIB) await put(stand, at, 64 * KIB, 1);
  let longestMs = 0;
  let last = performance.now();
  const timer = setInterval(() => {
    const now = performance.now();
    longestMs = Math.max(longestMs, now - last);
    last = now;
  }, 1);
  t.after(() => clearInterval(timer));
  await sleep(20);
  longestMs = 0;
  const job = await stand.mirror();
  await stand.readyOrEnded(job);
  assert.equal(job.status, 'ready');
  assert.ok(longestMs < 250, `nobody else had a turn for ${longestMs} ms`);
  job.cancel({ force: true });
  await ended(job);
  await stand.view.close();
});
