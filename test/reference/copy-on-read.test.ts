/** Copy-on-read: what is read becomes the overlay's own, the guest's writes win, and the base is read no more than needed. */
import assert from 'node:assert/strict';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import fc from 'fast-check';
import { BlockError } from '../../src/base/block-error.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { View } from '../../src/block/view.ts';
import { delayedFile, type Interference } from '../support/delayed-file.ts';
import { imageView } from '../support/image-view.ts';
import { assertClean, qemuImg, qemuImgJson } from '../support/qemu-img.ts';
import { countOf, SEED } from '../support/run-parameters.ts';
import { type Cleanup, scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';

const KIB = 1024;
const SIZE = 4096 * KIB;
const CLUSTER = 64 * KIB;

/** A full raw base below an empty overlay. */
const makePair = async (
  directory: string,
): Promise<{ base: string; top: string; content: Buffer }> => {
  const base = join(directory, 'base.raw');
  const top = join(directory, 'top.qcow2');
  const content = Buffer.alloc(SIZE);
  for (let at = 0; at < SIZE; at += 512) content.writeUInt32LE(at + 1, at);
  // Zeros in the base become the overlay's own as well.
  content.fill(0, 1024 * KIB, 1100 * KIB);
  await writeFile(base, content);
  await qemuImg(['create', '-q', '-f', 'qcow2', '-b', 'base.raw', '-F', 'raw', top]);
  return { base, top, content };
};

const opened = async (
  t: Cleanup,
  interfere: (base: string, top: string) => { path: string | null; interference: Interference },
): Promise<{ view: View; content: Buffer; top: string }> => {
  const directory = await scratchDirectory(t);
  const { base, top, content } = await makePair(directory);
  const { path, interference } = interfere(base, top);
  const graph = await testGraph({
    directory,
    file: delayedFile(path, interference),
    copyOnRead: true,
  });
  const view = imageView(graph, { path: top, format: 'qcow2' }, 'top.raw');
  t.after(() => view.close());
  return { view, content, top };
};

const readAt = async (view: View, offset: number, length: number): Promise<Buffer> => {
  const buffer = Buffer.alloc(length);
  await view.read(guestOffset(offset), buffer);
  return buffer;
};

test('readers of one cluster at the same time fetch it once, and later ones not at all', async (t) => {
  const reads: number[] = [];
  const { view, content } = await opened(t, (base) => ({
    path: base,
    interference: {
      before: async (operation, offset) => {
        if (operation !== 'read') return;
        reads.push(offset);
        await sleep(20);
      },
    },
  }));
  const places = Array.from({ length: 16 }, (_, i) => 5 * CLUSTER + ((i * 7) % 16) * 4 * KIB);
  const seen = await Promise.all(places.map((at) => readAt(view, at, 4 * KIB)));
  for (const [i, at] of places.entries()) {
    assert.ok(seen[i]?.equals(content.subarray(at, at + 4 * KIB)));
  }
  assert.deepEqual(reads, [5 * CLUSTER]);
  await view.close();
  await readAt(view, 5 * CLUSTER, CLUSTER);
  assert.equal(reads.length, 1, 'it is in the overlay now');
});

test('a reader is answered before its copy is written, and a copy that fails costs it nothing', async (t) => {
  let writes = 0;
  let isBad = true;
  let open = (): void => undefined;
  const gate = new Promise<void>((resolve) => {
    open = resolve;
  });
  const { view, content } = await opened(t, (_base, top) => ({
    path: top,
    interference: {
      before: async (operation) => {
        if (operation !== 'write' || !isBad) return;
        writes++;
        await gate;
        throw new BlockError({ kind: 'io', message: 'a bad disk' });
      },
    },
  }));
  // No write of the overlay ends before these reads do.
  for (const at of [3 * CLUSTER, 0, 9 * CLUSTER]) {
    const seen = await readAt(view, at, 512);
    assert.ok(seen.equals(content.subarray(at, at + 512)));
  }
  open();
  assert.ok((await readAt(view, 0, CLUSTER)).equals(content.subarray(0, CLUSTER)));
  await view.root?.copyOnRead?.settled();
  assert.ok(writes > 0);
  isBad = false;
  assert.ok((await readAt(view, 0, CLUSTER)).equals(content.subarray(0, CLUSTER)));
});

test('a sequential reader is read for in advance in large pieces, one that jumps about is not', async (t) => {
  const reads: { offset: number; length: number }[] = [];
  const { view, content } = await opened(t, (base) => ({
    path: base,
    interference: {
      before: async (operation, offset, length) => {
        if (operation === 'read') reads.push({ offset, length });
      },
    },
  }));
  for (const at of [40, 3, 21, 60, 11]) await readAt(view, at * CLUSTER, 4 * KIB);
  assert.deepEqual(
    reads.map((r) => r.length),
    [CLUSTER, CLUSTER, CLUSTER, CLUSTER, CLUSTER],
    'random reads fetch their own cluster',
  );
  reads.length = 0;
  for (let at = 22 * CLUSTER; at < 38 * CLUSTER; at += 4 * KIB) {
    assert.ok((await readAt(view, at, 4 * KIB)).equals(content.subarray(at, at + 4 * KIB)));
  }
  assert.ok(reads.length <= 12, `${reads.length} reads for 16 clusters`);
  assert.ok(Math.max(...reads.map((r) => r.length)) >= 4 * CLUSTER);
});

test('a sequential reader is followed by the one read of each cluster that workers leave to the node', async (t) => {
  const reads: number[] = [];
  const { view } = await opened(t, (base) => ({
    path: base,
    interference: {
      before: async (operation, _offset, length) => {
        if (operation === 'read') reads.push(length);
      },
    },
  }));
  for (let at = 20 * CLUSTER; at < 40 * CLUSTER; at += CLUSTER) await readAt(view, at, 4 * KIB);
  assert.ok(reads.length <= 12, `${reads.length} reads for 20 clusters: ${reads.join(' ')}`);
  assert.ok(Math.max(...reads) >= 4 * CLUSTER);
});

const steps = fc.array(
  fc.record({
    kind: fc.constantFrom<'read' | 'write' | 'discard' | 'zero'>(
      'read',
      'read',
      'write',
      'discard',
      'zero',
    ),
    offset: fc.nat(SIZE - 1),
    lengthBytes: fc.integer({ min: 1, max: 200 * KIB }),
  }),
  { minLength: 10, maxLength: 60 },
);

test(`the guest sees what it wrote, else the base, and what it read is kept (seed ${SEED})`, async (t) => {
  const root = await scratchDirectory(t);
  let run = 0;
  const property = fc.asyncProperty(
    steps,
    fc.integer({ min: 1, max: 2 ** 30 }),
    async (plan, seed) => {
      const directory = join(root, String(run++));
      await mkdir(directory);
      const { base, top, content } = await makePair(directory);
      let state = seed;
      const before = async (): Promise<void> => {
        state = (state * 48271) % 0x7fffffff;
        if (state % 3 > 0) await sleep(state % 4);
      };
      const graph = await testGraph({
        directory,
        file: delayedFile(null, { before }),
        copyOnRead: true,
      });
      const view = imageView(graph, { path: top, format: 'qcow2' }, 'top.raw');
      const touched: { start: number; end: number }[] = [];
      for (const [index, { kind, offset, lengthBytes }] of plan.entries()) {
        const length = Math.min(lengthBytes, SIZE - offset);
        const range = content.subarray(offset, offset + length);
        switch (kind) {
          case 'read':
            assert.ok((await readAt(view, offset, length)).equals(range), `read ${index}`);
            touched.push({ start: offset, end: offset + length });
            break;
          case 'write':
            range.fill(1 + (index % 250));
            await view.write(guestOffset(offset), Buffer.from(range));
            break;
          case 'discard':
            range.fill(0);
            await view.punchHole(guestOffset(offset), length);
            break;
          case 'zero':
            range.fill(0);
            await view.zeroRange(guestOffset(offset), length, { keepSize: true });
        }
      }
      await view.close();
      assert.equal(graph.nodes.size, 0);
      await assertClean(top);
      const expected = join(directory, 'expected');
      await writeFile(expected, content);
      await qemuImg(['compare', '-f', 'raw', '-F', 'qcow2', expected, top]);
      await assertOwn(top, touched);
      assert.equal((await readFile(base)).length, SIZE);
    },
  );
  await fc.assert(property, { seed: SEED, numRuns: countOf(6) });
});

/** All of these ranges are in the overlay itself. */
const assertOwn = async (
  top: string,
  ranges: readonly { start: number; end: number }[],
): Promise<void> => {
  const map = (await qemuImgJson('map', [top])) as {
    start: number;
    length: number;
    depth: number;
  }[];
  for (const { start, length, depth } of map.filter((m) => m.depth > 0)) {
    for (const range of ranges) {
      const isOutside = range.end <= start || range.start >= start + length;
      assert.ok(isOutside, `${range.start} was read, and lies at depth ${depth}`);
    }
  }
};
