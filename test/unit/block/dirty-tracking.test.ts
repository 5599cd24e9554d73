import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { BlockError } from '../../../src/base/block-error.ts';
import { guestOffset } from '../../../src/base/units.ts';
import { DirtyBitmap } from '../../../src/block/dirty-bitmap.ts';
import { TrackedBitmap } from '../../../src/block/dirty-tracking.ts';
import type { MappingChange } from '../../../src/block/driver.ts';
import type { Node } from '../../../src/block/node.ts';
import { type Cleanup, scratchDirectory } from '../../support/scratch.ts';
import { testGraph } from '../../support/test-graph.ts';

const LENGTH = 1 << 20;
const K = 1024;

const openRaw = async (t: Cleanup): Promise<Node> => {
  const directory = await scratchDirectory(t);
  const path = join(directory, 'disk.raw');
  await writeFile(path, new Uint8Array(LENGTH));
  const graph = await testGraph({ directory });
  const node = await graph.open({ path, format: 'raw', readOnly: false });
  t.after(() => graph.close(node));
  return node;
};

const named = (name: string, recording = true): TrackedBitmap =>
  new TrackedBitmap({
    name,
    content: new DirtyBitmap({ lengthBytes: LENGTH, granularityBytes: 4 * K }),
    recording,
    persistent: false,
  });

test('writes, zeroes and discards are in every bitmap that records, and in no other', async (t) => {
  const node = await openRaw(t);
  const { dirtyBitmaps } = node;
  const fine = await dirtyBitmaps.start(512);
  const coarse = await dirtyBitmaps.start(64 * K);
  const idle = named('idle', false);
  await dirtyBitmaps.add(idle);
  await node.write(guestOffset(1000), new Uint8Array(100));
  await node.writeZeroes(guestOffset(200 * K), 1024, { unmap: false });
  await node.discard(guestOffset(500 * K), 4096);
  await node.read(guestOffset(700 * K), new Uint8Array(4096));
  assert.deepEqual(
    [...fine.content.dirtyRanges()],
    [
      { start: 512, lengthBytes: 1024 },
      { start: 200 * K, lengthBytes: 1024 },
      { start: 500 * K, lengthBytes: 4096 },
    ],
  );
  assert.deepEqual(
    [...coarse.content.dirtyRanges()].map((r) => [r.start / K, r.lengthBytes / K]),
    [
      [0, 64],
      [192, 64],
      [448, 64],
    ],
  );
  assert.equal(idle.content.dirtyBytes, 0);
});

test('clearing a range takes the permissions for it away, in the same turn', async (t) => {
  const node = await openRaw(t);
  const changes: MappingChange[] = [];
  node.mappingListeners.add((change) => changes.push(change));
  const bitmap = await node.dirtyBitmaps.start(4 * K);
  await node.write(guestOffset(0), new Uint8Array(64 * K));
  changes.length = 0;
  node.dirtyBitmaps.clear(bitmap, 8 * K, 16 * K);
  assert.deepEqual(changes, [{ start: 8 * K, lengthBytes: 16 * K, staysReadable: true }]);
  assert.deepEqual(
    [...bitmap.content.dirtyRanges()].map((r) => [r.start / K, r.lengthBytes / K]),
    [
      [0, 8],
      [24, 40],
    ],
  );
});

test('a bitmap records from when adding it has ended: whoever wrote as before is waited for', async (t) => {
  const node = await openRaw(t);
  let letGo = (): void => undefined;
  const held = new Promise<void>((resolve) => {
    letGo = resolve;
  });
  node.dirtyBitmaps.listeners.add(() => held);
  let added = false;
  const adding = node.dirtyBitmaps.start(4 * K).then((bitmap) => {
    added = true;
    return bitmap;
  });
  await node.write(guestOffset(0), new Uint8Array(1));
  await new Promise((resolve) => setTimeout(resolve, 20));
  assert.equal(added, false);
  letGo();
  const bitmap = await adding;
  assert.equal(bitmap.content.dirtyBytes, 4 * K, 'a write that came meanwhile is in it too');
});

test('resizing the node resizes its bitmaps; what it gains is clean', async (t) => {
  const node = await openRaw(t);
  const bitmap = await node.dirtyBitmaps.start(64 * K);
  await node.write(guestOffset(LENGTH - 1), new Uint8Array(1));
  await node.resize(2 * LENGTH);
  assert.equal(bitmap.content.lengthBytes, 2 * LENGTH);
  await node.write(guestOffset(2 * LENGTH - 1), new Uint8Array(1));
  assert.deepEqual(
    [...bitmap.content.dirtyRanges()].map((r) => r.start),
    [LENGTH - 64 * K, 2 * LENGTH - 64 * K],
  );
  await node.resize(LENGTH);
  assert.equal(bitmap.content.dirtyBytes, 64 * K);
});

test('names are unique, and a bitmap that a job uses, or that is inconsistent, is refused by name', async (t) => {
  const { dirtyBitmaps } = await openRaw(t);
  await dirtyBitmaps.add(named('a'));
  const errnoOf = (run: () => unknown): Promise<string> =>
    Promise.resolve()
      .then(run)
      .then(
        () => 'none',
        (error: unknown) => (error instanceof BlockError ? error.errno : String(error)),
      );
  assert.equal(await errnoOf(() => dirtyBitmaps.add(named('a'))), 'EEXIST');
  assert.equal(await errnoOf(() => dirtyBitmaps.get('b')), 'ENOENT');
  dirtyBitmaps.get('a').user = 'job mirror0';
  assert.equal(await errnoOf(() => dirtyBitmaps.get('a')), 'EBUSY');
  assert.equal(await errnoOf(() => dirtyBitmaps.remove('a')), 'EBUSY');
  const { content } = named('c');
  dirtyBitmaps.adopt(
    new TrackedBitmap({
      name: 'c',
      content,
      recording: false,
      persistent: true,
      inconsistent: true,
    }),
  );
  assert.equal(await errnoOf(() => dirtyBitmaps.get('c')), 'EINVAL');
  assert.equal(await errnoOf(() => dirtyBitmaps.remove('c')), 'none');
});

test('a bitmap that a job takes while its image is told that it changes is neither removed nor changed', async (t) => {
  const { dirtyBitmaps } = await openRaw(t);
  const holds: (() => void)[] = [];
  const hold = (): Promise<void> => new Promise((resolve) => holds.push(resolve));
  const content = new DirtyBitmap({ lengthBytes: LENGTH, granularityBytes: 4 * K });
  const kept = { name: 'kept', content, recording: true, persistent: true, storage: { hold } };
  const bitmap = new TrackedBitmap(kept);
  dirtyBitmaps.adopt(bitmap);
  bitmap.mark(0, 1);
  const changes = [
    () => dirtyBitmaps.remove('kept'),
    () => dirtyBitmaps.clearAll(bitmap),
    () => dirtyBitmaps.disable(bitmap),
    () => dirtyBitmaps.merge(bitmap, new DirtyBitmap({ lengthBytes: LENGTH, granularityBytes: K })),
  ];
  for (const change of changes) {
    const refused = assert.rejects(change(), { kind: 'busy' });
    bitmap.user = 'job';
    holds.pop()?.();
    await refused;
    bitmap.user = null;
  }
  assert.equal(dirtyBitmaps.find('kept'), bitmap);
  assert.ok(bitmap.recording && content.isDirty(0));
  // Its job changes it as it likes.
  bitmap.user = 'job';
  const cleared = dirtyBitmaps.clearAll(bitmap);
  holds.pop()?.();
  await cleared;
  assert.ok(!content.isDirty(0));
  // Removed twice at the same time.
  bitmap.user = null;
  const removed = [dirtyBitmaps.remove('kept'), dirtyBitmaps.remove('kept')];
  const second = assert.rejects(removed[1] as Promise<void>, { kind: 'not-found' });
  for (const held of holds.splice(0)) held();
  await removed[0];
  await second;
});
