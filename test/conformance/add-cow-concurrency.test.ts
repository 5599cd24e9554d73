/** What an add-cow image reads, copies and locks when its guest writes, and that guest bytes beat copied ones. */
import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import { BlockError } from '../../src/base/block-error.ts';
import { seededRandom } from '../../src/base/random.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { Node } from '../../src/block/node.ts';
import { guestOf, readAddCow, writeAddCow } from '../support/add-cow-file.ts';
import { delayedFile, type FileOperation } from '../support/delayed-file.ts';
import { SEED } from '../support/run-parameters.ts';
import { type Cleanup, scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';

const CLUSTER = 65_536;
/** The last cluster of the image and the last one of the backing file both end inside. */
const BYTES = 32 * CLUSTER + 1000;
const BASE_BYTES = 31 * CLUSTER + 500;

type Before = (op: FileOperation, offset: number, lengthBytes: number) => Promise<void>;
const nothing: Before = async () => undefined;

interface Opened {
  readonly node: Node;
  readonly base: Buffer;
  /** Of the three files; tests change them. */
  readonly hooks: { base: Before; image: Before; bits: Before };
  /** Closes, and compares what the files hold. */
  finish(expected: Buffer): Promise<void>;
}

const opened = async (t: Cleanup): Promise<Opened> => {
  const directory = await scratchDirectory(t);
  const path = (name: string): string => `${directory}/${name}`;
  const base = Buffer.alloc(BYTES);
  for (let i = 0; i < BASE_BYTES; i++) base[i] = 1 + (i % 251);
  await writeFile(path('base'), base.subarray(0, BASE_BYTES));
  await writeFile(path('image'), Buffer.alloc(BYTES, 0xee));
  await writeAddCow(path('disk.add-cow'), {
    clusterBytes: CLUSTER,
    backing: { name: 'base', format: 'raw' },
    image: { name: 'image', format: 'raw' },
    isAllAllocated: false,
    bits: new Array<boolean>(33).fill(false),
  });
  const hooks = { base: nothing, image: nothing, bits: nothing };
  const hooked = (name: string, hook: keyof typeof hooks) =>
    [path(name), { before: ((...args) => hooks[hook](...args)) as Before }] as const;
  const file = delayedFile(
    ...hooked('base', 'base'),
    delayedFile(...hooked('image', 'image'), delayedFile(...hooked('disk.add-cow', 'bits'))),
  );
  const graph = await testGraph({ directory, file });
  const node = await graph.open({ path: path('disk.add-cow'), format: null, readOnly: false });
  const finish = async (expected: Buffer): Promise<void> => {
    Object.assign(hooks, { base: nothing, image: nothing, bits: nothing });
    const found = Buffer.alloc(BYTES);
    await node.read(guestOffset(0), found);
    assert.ok(found.equals(expected), 'what the guest sees');
    await graph.close(node);
    const decoded = await readAddCow(path('disk.add-cow'), BYTES);
    const seen = guestOf(decoded, await readFile(path('image')), base);
    assert.ok(Buffer.from(seen).equals(expected), 'what the files hold');
  };
  return { node, base, hooks, finish };
};

const put = async (o: Opened, expected: Buffer, at: number, bytes: Buffer): Promise<void> => {
  await o.node.write(guestOffset(at), bytes);
  bytes.copy(expected, at);
};

test('whole clusters are written without a look at the backing file', async (t) => {
  const o = await opened(t);
  const expected = Buffer.from(o.base);
  o.hooks.base = async () => {
    throw new Error('the backing file is read');
  };
  await put(o, expected, CLUSTER, Buffer.alloc(3 * CLUSTER, 7));
  await put(o, expected, 32 * CLUSTER, Buffer.alloc(1000, 8));
  await o.node.discard(guestOffset(8 * CLUSTER), 2 * CLUSTER);
  expected.fill(0, 8 * CLUSTER, 10 * CLUSTER);
  // Once a cluster is there, its parts need nothing from below either.
  await put(o, expected, 2 * CLUSTER + 5, Buffer.alloc(100, 9));
  await o.finish(expected);
});

test('a partial write copies what the guest does not write and no more, at every alignment', async (t) => {
  const o = await opened(t);
  const expected = Buffer.from(o.base);
  let read: [number, number][] = [];
  o.hooks.base = async (op, offset, length) => {
    if (op === 'read' && length > 0) read.push([offset, offset + length]);
  };
  const edges = [0, 1, 511, 512, 4095, 4096, CLUSTER - 1];
  let cluster = 0;
  for (const from of edges) {
    const to = from === 0 ? CLUSTER - 3 : CLUSTER;
    read = [];
    const start = cluster * CLUSTER;
    await put(o, expected, start + from, Buffer.alloc(to - from, 0x55));
    const copied = from === 0 ? [[start + to, start + CLUSTER]] : [[start, start + from]];
    assert.deepEqual(read, copied, `write of ${from} to ${to}`);
    cluster += 1;
  }
  // Across clusters: the head of the first, the tail of the last.
  read = [];
  const start = cluster * CLUSTER;
  await put(o, expected, start + 100, Buffer.alloc(6 * CLUSTER, 0x66));
  assert.deepEqual(
    read.sort((a, b) => a[0] - b[0]),
    [
      [start, start + 100],
      [start + 6 * CLUSTER + 100, start + 7 * CLUSTER],
    ],
  );
  // The backing file's end and the image's end: nothing is read past the one, nothing written past the other.
  read = [];
  await put(o, expected, 31 * CLUSTER + 400, Buffer.alloc(50, 0x77));
  await put(o, expected, 32 * CLUSTER + 10, Buffer.alloc(10, 0x78));
  assert.ok(read.every(([, end]) => end <= BASE_BYTES));
  await o.finish(expected);
});

test('writes to clusters that are there, and to other new ones, do not wait for a slow one', async (t) => {
  const o = await opened(t);
  const expected = Buffer.from(o.base);
  await put(o, expected, 5 * CLUSTER, Buffer.alloc(CLUSTER, 1));
  let release = (): void => undefined;
  const held = new Promise<void>((resolve) => {
    release = resolve;
  });
  o.hooks.base = async (op, offset) => {
    if (op === 'read' && offset < CLUSTER) await held;
  };
  const bytes = Buffer.alloc(100, 2);
  const slow = o.node.write(guestOffset(50), bytes);
  await put(o, expected, 5 * CLUSTER + 77, Buffer.alloc(1000, 3));
  await put(o, expected, 6 * CLUSTER + 77, Buffer.alloc(1000, 4));
  await put(o, expected, 7 * CLUSTER, Buffer.alloc(CLUSTER, 5));
  release();
  await slow;
  bytes.copy(expected, 50);
  await o.finish(expected);
});

test('thirty-two writes in flight, into the same clusters, all stay', async (t) => {
  const o = await opened(t);
  const expected = Buffer.from(o.base);
  const random = seededRandom(SEED);
  const wait: Before = () => new Promise((resolve) => setTimeout(resolve, random.below(4)));
  Object.assign(o.hooks, { base: wait, image: wait });
  for (let round = 0; round < 4; round++) {
    // Pieces of 1 to 6000 bytes that do not touch, in an order of their own.
    const pieces: { at: number; bytes: Buffer }[] = [];
    let at = round * 7 * CLUSTER + random.below(3000);
    while (pieces.length < 32) {
      const bytes = Buffer.alloc(1 + random.below(6000));
      random.fill(bytes);
      pieces.push({ at, bytes });
      at += bytes.length + random.below(12_000);
    }
    for (let i = pieces.length - 1; i > 0; i--) {
      const j = random.below(i + 1);
      const [a, b] = [pieces[i], pieces[j]];
      if (a !== undefined && b !== undefined) [pieces[i], pieces[j]] = [b, a];
    }
    await Promise.all(pieces.map((p) => put(o, expected, p.at, p.bytes)));
  }
  await o.finish(expected);
});

test('a write that fails leaves the old content; a failed flush leaves the bits of the file alone', async (t) => {
  const o = await opened(t);
  const expected = Buffer.from(o.base);
  const fails: Before = async (op) => {
    if (op !== 'read') throw new BlockError({ kind: 'no-space', message: 'the disk is full' });
  };
  o.hooks.image = fails;
  const noSpace = { errno: 'ENOSPC' };
  await assert.rejects(o.node.write(guestOffset(70), Buffer.alloc(10, 9)), noSpace);
  await assert.rejects(o.node.discard(guestOffset(CLUSTER), CLUSTER), noSpace);
  o.hooks.image = nothing;
  await put(o, expected, CLUSTER + 5, Buffer.alloc(10, 3));
  let bitsWritten = 0;
  o.hooks.bits = async (op) => {
    if (op === 'write') bitsWritten++;
  };
  o.hooks.image = async (op) => {
    if (op === 'flush') throw new BlockError({ kind: 'io', message: 'the disk is gone' });
  };
  await assert.rejects(o.node.flush(), { errno: 'EIO' });
  assert.equal(bitsWritten, 0, 'no bit goes before what it stands for');
  o.hooks.image = nothing;
  await o.node.flush();
  assert.ok(bitsWritten > 0);
  await o.finish(expected);
});
