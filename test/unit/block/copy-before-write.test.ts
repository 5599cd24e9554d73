/** Copy-before-write: what a guest changes was copied as it was before, whoever is slow or fails. */
import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { BlockError } from '../../../src/base/block-error.ts';
import { guestOffset } from '../../../src/base/units.ts';
import { type Copier, CopyBeforeWrite } from '../../../src/block/copy-before-write.ts';
import { DirtyBitmap, type DirtyRange } from '../../../src/block/dirty-bitmap.ts';
import type { Node } from '../../../src/block/node.ts';
import { type Cleanup, scratchDirectory } from '../../support/scratch.ts';
import { testGraph } from '../../support/test-graph.ts';

const K = 1024;
const BLOCK = 64 * K;
/** The last block is cut short. */
const LENGTH = 8 * BLOCK - 5000;
const OLD = 7;
const NEW = 9;

interface Scene {
  readonly node: Node;
  readonly point: CopyBeforeWrite;
  /** What was copied. */
  readonly copy: Buffer;
  readonly copied: { readonly start: number; readonly lengthBytes: number; readonly by: Copier }[];
  doneBytes(): number;
}

const sceneOf = async (
  t: Cleanup,
  options: {
    readonly before?: (range: DirtyRange) => Promise<void>;
    readonly left?: (left: DirtyBitmap) => void;
    readonly refuse?: boolean;
  } = {},
): Promise<Scene> => {
  const directory = await scratchDirectory(t);
  const path = join(directory, 'disk.raw');
  await writeFile(path, Buffer.alloc(LENGTH, OLD));
  const graph = await testGraph({ directory });
  const node = await graph.open({ path, format: 'raw', readOnly: false });
  t.after(() => graph.close(node));
  const left = new DirtyBitmap({ lengthBytes: LENGTH, granularityBytes: BLOCK });
  if (options.left === undefined) left.markAll();
  else options.left(left);
  const copy = Buffer.alloc(LENGTH);
  const copied: Scene['copied'] = [];
  let doneBytes = 0;
  const point = new CopyBeforeWrite({
    node,
    blockBytes: BLOCK,
    left,
    copy: async (range, by) => {
      const { start, lengthBytes } = range;
      copied.push({ start, lengthBytes, by });
      await options.before?.(range);
      await node.read(guestOffset(start), copy.subarray(start, start + lengthBytes));
    },
    guestFailure: (error) =>
      options.refuse === true ? new BlockError({ kind: 'io', message: String(error) }) : null,
    progress: (lengthBytes) => {
      doneBytes += lengthBytes;
    },
  });
  await point.begin();
  return { node, point, copy, copied, doneBytes: () => doneBytes };
};

const gate = (): { readonly opened: Promise<void>; readonly open: () => void } => {
  let open = (): void => undefined;
  const opened = new Promise<void>((resolve) => {
    open = resolve;
  });
  return { opened, open };
};

const byteAt = async (node: Node, offset: number): Promise<number | undefined> => {
  const bytes = Buffer.alloc(1);
  await node.read(guestOffset(offset), bytes);
  return bytes[0];
};

const soon = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 20));

const copyAll = async ({ point }: Scene): Promise<void> => {
  for (let at = 0; ; ) {
    const found = point.next(at);
    if (found === null) return;
    await point.copy({ start: found.start, lengthBytes: BLOCK }, 'job');
    at = found.start + BLOCK;
  }
};

test('a write, a discard, zeroes and a resize wait until what they change was copied', async (t) => {
  const scene = await sceneOf(t);
  const { node, copied, copy } = scene;
  await node.write(guestOffset(BLOCK + 10), Buffer.alloc(100, NEW));
  await node.discard(guestOffset(3 * BLOCK), BLOCK + 1);
  await node.writeZeroes(guestOffset(LENGTH - 10), 10, { unmap: false });
  assert.deepEqual(
    copied.map((c) => [c.start / BLOCK, c.lengthBytes, c.by]),
    [
      [1, BLOCK, 'guest'],
      [3, 2 * BLOCK, 'guest'],
      [7, BLOCK - 5000, 'guest'],
    ],
  );
  await node.resize(5 * BLOCK + 1);
  await copyAll({ ...scene });
  assert.deepEqual(copy, Buffer.alloc(LENGTH, OLD));
  assert.equal(scene.doneBytes(), LENGTH);
});

test('a write to a range that is being copied waits for that copy, others do not', async (t) => {
  const slow = gate();
  const { node, point, copy } = await sceneOf(t, {
    before: ({ start }) => (start === 0 ? slow.opened : Promise.resolve()),
  });
  const copying = point.copy({ start: 0, lengthBytes: BLOCK }, 'job');
  let written = false;
  const writing = node.write(guestOffset(4 * K), Buffer.alloc(4 * K, NEW)).then(() => {
    written = true;
  });
  await node.write(guestOffset(2 * BLOCK), Buffer.alloc(4 * K, NEW));
  await soon();
  assert.equal(written, false);
  assert.equal(await byteAt(node, 4 * K), OLD);
  slow.open();
  await Promise.all([copying, writing]);
  assert.equal(await byteAt(node, 4 * K), NEW);
  assert.equal(copy[4 * K], OLD);
});

test('who writes what is done, or never was to be copied, waits for nobody', async (t) => {
  const { node, point, copied } = await sceneOf(t, {
    left: (left) => left.mark(BLOCK, 2 * BLOCK),
  });
  await node.write(guestOffset(0), Buffer.alloc(BLOCK, NEW));
  await point.copy({ start: BLOCK, lengthBytes: BLOCK }, 'job');
  point.release({ start: 2 * BLOCK, lengthBytes: BLOCK });
  await node.write(guestOffset(BLOCK), Buffer.alloc(2 * BLOCK, NEW));
  assert.deepEqual(
    copied.map((c) => c.start / BLOCK),
    [1],
  );
  assert.equal(point.next(0), null);
});

test('pages have no write permission before their blocks are done', async (t) => {
  const { node, point } = await sceneOf(t);
  const isDirty = (at: number): boolean => node.dirtyBitmaps.runAt(at, BLOCK).isDirty;
  assert.equal(isDirty(0), false);
  await point.copy({ start: 0, lengthBytes: BLOCK }, 'job');
  assert.equal(isDirty(0), true);
  await node.write(guestOffset(BLOCK), Buffer.alloc(1, NEW));
  assert.equal(isDirty(BLOCK), true);
  assert.equal(isDirty(2 * BLOCK), false);
  point.end();
  assert.equal(node.dirtyBitmaps.isRecording, false, 'nothing is in the way afterwards');
  assert.equal(node.interposers.length, 0);
});

test('a copy for a guest that fails: the guest goes on, and the point in time has ended', async (t) => {
  const { node, point } = await sceneOf(t, { before: () => Promise.reject(new Error('no room')) });
  await node.write(guestOffset(0), Buffer.alloc(1, NEW));
  assert.equal(await byteAt(node, 0), NEW);
  await point.over;
});

test('a copy for a guest that fails: asked for, the write fails, and what was there stays to be copied', async (t) => {
  const failing = { now: true };
  const { node, point, copy } = await sceneOf(t, {
    refuse: true,
    before: () => (failing.now ? Promise.reject(new Error('no room')) : Promise.resolve()),
  });
  await assert.rejects(node.write(guestOffset(0), Buffer.alloc(1, NEW)), /no room/);
  assert.equal(await byteAt(node, 0), OLD);
  assert.deepEqual(point.next(0), { start: 0, lengthBytes: LENGTH });
  failing.now = false;
  await node.write(guestOffset(0), Buffer.alloc(1, NEW));
  assert.equal(copy[0], OLD);
});

test("the job's copy fails: the guest that waited for it makes its own", async (t) => {
  const first = gate();
  let calls = 0;
  const { node, point, copied, copy } = await sceneOf(t, {
    before: async () => {
      if (calls++ > 0) return;
      await first.opened;
      throw new Error('once');
    },
  });
  const failed = assert.rejects(point.copy({ start: 0, lengthBytes: BLOCK }, 'job'), /once/);
  const writing = node.write(guestOffset(0), Buffer.alloc(1, NEW));
  await soon();
  first.open();
  await failed;
  await writing;
  assert.deepEqual(
    copied.map((c) => c.by),
    ['job', 'guest'],
  );
  assert.equal(copy[0], OLD);
});

test('ending lets go of who waits for a copy that hangs', async (t) => {
  const never = gate();
  const { node, point } = await sceneOf(t, { before: () => never.opened });
  const writing = node.write(guestOffset(0), Buffer.alloc(1, NEW));
  await soon();
  point.end();
  await writing;
  assert.equal(await byteAt(node, 0), NEW);
  never.open();
  await point.settled();
});

test('a discard of everything is copied in pieces', async (t) => {
  const { node, copied, copy } = await sceneOf(t);
  await node.discard(guestOffset(0), LENGTH);
  assert.ok(copied.every((c) => c.lengthBytes <= 1 << 20));
  assert.deepEqual(copy, Buffer.alloc(LENGTH, OLD));
});
