/** What images with extended L2 entries are for: space and copies by the subcluster. QEMU says what is where. */
import assert from 'node:assert/strict';
import { readFile, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { guestOffset } from '../../src/base/units.ts';
import type { Graph } from '../../src/block/graph.ts';
import type { Node } from '../../src/block/node.ts';
import { qemuImg, qemuIo } from '../support/qemu-img.ts';
import { type Cleanup, scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';
import { vdiskfs } from '../support/vdiskfs.ts';

const CLUSTER = 64 << 10;
const SUB = 2 << 10;
const DISK_BYTES = 1 << 20;
const BASE = 0x42;

interface Opened {
  readonly graph: Graph;
  readonly node: Node;
  readonly path: string;
}

/** An overlay over a base of one byte, after some I/O of QEMU's. */
const opened = async (
  t: Cleanup,
  io: readonly string[] = [],
  then: (path: string) => Promise<unknown> = async () => undefined,
): Promise<Opened> => {
  const directory = await scratchDirectory(t);
  const base = join(directory, 'base.raw');
  const path = join(directory, 'disk.qcow2');
  await writeFile(base, new Uint8Array(DISK_BYTES).fill(BASE));
  const args = ['create', '-q', '-f', 'qcow2', '-o', 'extended_l2=on', '-b', base, '-F', 'raw'];
  await qemuImg([...args, path, String(DISK_BYTES)]);
  if (io.length > 0) await qemuIo(path, io, ['-f', 'qcow2']);
  await then(path);
  const graph = await testGraph({ directory });
  return { graph, path, node: await graph.open({ path, format: 'qcow2', readOnly: false }) };
};

interface Run {
  readonly start: number;
  readonly length: number;
  readonly depth: number;
  readonly zero: boolean;
  readonly offset?: number;
}

/** Closes it; what QEMU finds in it then, which must be sound: the runs of the image's own. */
const finished = async ({ graph, node, path }: Opened): Promise<readonly Run[]> => {
  await graph.close(node);
  await qemuImg(['check', '-q', '-f', 'qcow2', path]);
  const map = JSON.parse(await qemuImg(['map', '--output=json', '-f', 'qcow2', path]));
  return (map as Run[]).filter((run) => run.depth === 0);
};

const content = async (path: string): Promise<Uint8Array> => {
  await qemuImg(['convert', '-f', 'qcow2', '-O', 'raw', path, `${path}.flat`]);
  return new Uint8Array(await readFile(`${path}.flat`));
};

const extents = (runs: readonly Run[]): (readonly [number, number])[] =>
  runs.map((run) => [run.start, run.length]);

test('a partial write takes the subclusters that it touches, the rest stays below', async (t) => {
  const o = await opened(t);
  const at = CLUSTER + 3 * SUB + 100;
  await o.node.write(guestOffset(at), new Uint8Array(SUB).fill(1));
  const runs = await finished(o);
  assert.deepEqual(extents(runs), [[CLUSTER + 3 * SUB, 2 * SUB]]);
  const expected = new Uint8Array(DISK_BYTES).fill(BASE).fill(1, at, at + SUB);
  assert.deepEqual(await content(o.path), expected);
});

test('a later write fills another subcluster of the same host cluster', async (t) => {
  const o = await opened(t, [`write -P 1 ${CLUSTER} ${SUB}`]);
  await o.node.write(guestOffset(CLUSTER + 30 * SUB), new Uint8Array(2 * SUB).fill(2));
  await o.node.write(guestOffset(CLUSTER + 8 * SUB - 10), new Uint8Array(20).fill(3));
  const runs = await finished(o);
  assert.deepEqual(extents(runs), [
    [CLUSTER, SUB],
    [CLUSTER + 7 * SUB, 2 * SUB],
    [CLUSTER + 30 * SUB, 2 * SUB],
  ]);
  const [first, ...later] = runs;
  for (const run of later) {
    assert.equal(
      (run.offset ?? 0) - run.start,
      (first?.offset ?? 0) - CLUSTER,
      'in the place that the cluster has',
    );
  }
});

test('a write over data and what is not there writes the data in place', async (t) => {
  const o = await opened(t, [`write -P 1 ${5 * SUB} ${SUB}`, `write -z ${9 * SUB} ${SUB}`]);
  await o.node.write(guestOffset(SUB + 7), new Uint8Array(12 * SUB).fill(2));
  const runs = await finished(o);
  assert.deepEqual(extents(runs), [[SUB, 13 * SUB]]);
  const expected = new Uint8Array(DISK_BYTES).fill(BASE).fill(2, SUB + 7, 13 * SUB + 7);
  assert.deepEqual(await content(o.path), expected);
});

test('zeroing some subclusters changes their bits, and no byte of the file beside the tables', async (t) => {
  const o = await opened(t, [`write -P 1 0 ${CLUSTER}`]);
  const [before] = JSON.parse(await qemuImg(['map', '-U', '--output=json', o.path])) as Run[];
  const place = before?.offset ?? 0;
  const was = (await readFile(o.path)).subarray(place, place + CLUSTER);
  await o.node.writeZeroes(guestOffset(4 * SUB), 3 * SUB, { unmap: true });
  const runs = await finished(o);
  assert.deepEqual(
    runs.map((run) => [run.start, run.length, run.zero, run.offset]),
    [
      [0, 4 * SUB, false, place],
      [4 * SUB, 3 * SUB, true, place + 4 * SUB],
      [7 * SUB, 25 * SUB, false, place + 7 * SUB],
    ],
  );
  assert.deepEqual((await readFile(o.path)).subarray(place, place + CLUSTER), was);
});

test('with its last data subcluster a cluster gives its space back, unless it is to stay', async (t) => {
  for (const unmap of [true, false]) {
    const o = await opened(t, [`write -P 1 0 ${2 * SUB}`, `write -P 1 ${CLUSTER} ${CLUSTER}`]);
    await o.node.writeZeroes(guestOffset(0), 2 * SUB, { unmap });
    const [first] = await finished(o);
    assert.deepEqual([first?.start, first?.length, first?.zero], [0, 2 * SUB, true]);
    assert.equal(first?.offset === undefined, unmap);
  }
});

test('a cluster that a snapshot shares is copied by its data, not by what lies below', async (t) => {
  const writes = [`write -P 1 ${2 * SUB} ${SUB}`, `write -P 2 ${20 * SUB} ${SUB}`];
  const snapshot = (path: string) => qemuImg(['snapshot', '-c', 'one', path]);
  const o = await opened(t, [...writes, `write -z ${9 * SUB} ${SUB}`], snapshot);
  await o.node.write(guestOffset(5 * SUB), new Uint8Array(100).fill(3));
  const runs = await finished(o);
  assert.deepEqual(
    runs.map((run) => [run.start / SUB, run.length / SUB, run.zero]),
    [
      [2, 1, false],
      [5, 1, false],
      [9, 1, true],
      [20, 1, false],
    ],
  );
  const expected = new Uint8Array(DISK_BYTES).fill(BASE);
  expected
    .fill(1, 2 * SUB, 3 * SUB)
    .fill(2, 20 * SUB, 21 * SUB)
    .fill(0, 9 * SUB, 10 * SUB);
  assert.deepEqual(await content(o.path), expected.fill(3, 5 * SUB, 5 * SUB + 100));
});

test('a write into a packed cluster unpacks all of it, and frees what it was packed into', async (t) => {
  const o = await opened(t, [`write -c -P 1 ${CLUSTER} ${CLUSTER}`]);
  await o.node.writeZeroes(guestOffset(CLUSTER + SUB), SUB, { unmap: true });
  await o.node.write(guestOffset(CLUSTER + 5 * SUB), new Uint8Array(10).fill(2));
  assert.deepEqual(extents(await finished(o)), [[CLUSTER, CLUSTER]]);
  const expected = new Uint8Array(DISK_BYTES).fill(BASE).fill(1, CLUSTER, 2 * CLUSTER);
  expected
    .fill(0, CLUSTER + SUB, CLUSTER + 2 * SUB)
    .fill(2, CLUSTER + 5 * SUB, CLUSTER + 5 * SUB + 10);
  assert.deepEqual(await content(o.path), expected);
});

test('allocating gives a cluster a place, and what it reads still comes from below', async (t) => {
  const o = await opened(t, [`write -z ${CLUSTER} ${SUB}`]);
  await o.node.allocate(guestOffset(0), 2 * CLUSTER);
  const status = await o.node.blockStatus(guestOffset(CLUSTER), SUB);
  assert.ok(status.zero && status.hostOffset !== null, 'the zeros have a place now');
  assert.deepEqual(extents(await finished(o)), [[CLUSTER, SUB]]);
  const bytes = await content(o.path);
  assert.deepEqual(bytes, new Uint8Array(DISK_BYTES).fill(BASE).fill(0, CLUSTER, CLUSTER + SUB));
});

const done = async (args: readonly string[]): Promise<void> => {
  const { status, stderr } = await vdiskfs(args);
  assert.equal(status, 0, `${args.join(' ')}: ${stderr}`);
};

/** Of subclusters all kinds; the base is of one byte. */
const MIXED = [
  `write -P 1 ${3 * SUB} ${SUB}`,
  `write -z ${6 * SUB} ${2 * SUB}`,
  `write -c -P 2 ${CLUSTER} ${CLUSTER}`,
  `write -P 3 ${2 * CLUSTER + 20 * SUB} ${CLUSTER}`,
];

test('convert makes images with subclusters, packed or over a backing image, and reads them', async (t) => {
  const o = await opened(t, MIXED);
  await finished(o);
  const expected = await content(o.path);
  const made = `${o.path}.made`;
  for (const more of [
    [],
    ['-c'],
    ['-B', `${o.path.replace('disk.qcow2', 'base.raw')}`, '-F', 'raw'],
  ]) {
    await done(['convert', '-O', 'qcow2', '-o', 'extended_l2=on', ...more, o.path, made]);
    await qemuImg(['check', '-q', '-f', 'qcow2', made]);
    assert.deepEqual(await content(made), expected, more.join(' '));
  }
});

test('rebase keeps what is shown, where parts of clusters lie below', async (t) => {
  const o = await opened(t, MIXED);
  await finished(o);
  const expected = await content(o.path);
  const other = o.path.replace('disk.qcow2', 'other.raw');
  const bytes = new Uint8Array(DISK_BYTES).fill(BASE).fill(9, 10 * SUB, 5 * CLUSTER);
  await writeFile(other, bytes);
  for (const backing of [
    ['-b', other, '-F', 'raw'],
    ['-b', ''],
  ]) {
    await done(['rebase', '-f', 'qcow2', ...backing, o.path]);
    await qemuImg(['check', '-q', '-f', 'qcow2', o.path]);
    assert.deepEqual(await content(o.path), expected, backing.join(' '));
  }
});

test('what a resize cut off inside of a cluster does not come back, nor what lies below', async (t) => {
  const o = await opened(t, [`write -P 1 0 ${2 * CLUSTER}`]);
  const cut = CLUSTER + 3 * SUB + 512;
  await o.node.resize(cut);
  await o.node.resize(DISK_BYTES);
  await finished(o);
  assert.deepEqual(await content(o.path), new Uint8Array(DISK_BYTES).fill(1, 0, cut));
});

test('zeroing past the end of the backing image keeps what the same cluster hides before it', async (t) => {
  const { graph, node, path } = await opened(t, [], async (image) => {
    // It ends inside of the first cluster.
    await truncate(join(image, '..', 'base.raw'), 10 * SUB);
  });
  for (const past of [12, 20]) {
    for (const mode of ['zero', 'discard'] as const) {
      await node.writeZeroes(guestOffset(3 * SUB), 4 * SUB, { unmap: true });
      if (mode === 'discard') await node.discard(guestOffset(past * SUB), 3 * SUB);
      else await node.writeZeroes(guestOffset(past * SUB), 3 * SUB, { unmap: true });
    }
  }
  await finished({ graph, node, path });
  const expected = new Uint8Array(DISK_BYTES).fill(BASE, 0, 10 * SUB).fill(0, 3 * SUB, 7 * SUB);
  assert.equal(Buffer.compare(await content(path), expected), 0);
});
