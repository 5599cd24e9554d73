/**
 * Images whose snapshot table, or whose snapshots' own tables, hold anything: listing, showing, making, applying and deleting
 * give an error that names what is wrong, or do it; never a crash, a hang, or memory beyond a bound.
 */
import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import { BlockError } from '../../src/base/block-error.ts';
import { type Random, seededRandom } from '../../src/base/random.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { Graph } from '../../src/block/graph.ts';
import type { SnapshotDescription } from '../../src/block/image-description.ts';
import type { Node } from '../../src/block/node.ts';
import { qemuImg, qemuIo } from '../support/qemu-img.ts';
import { countOf, SEED } from '../support/run-parameters.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';

const COUNT = countOf(60);
const HANG_MS = 30_000;
const MEMORY_BYTES = 384 << 20;
const CLUSTER_BYTES = 4096;

const HOSTILE_64 = [
  0n,
  1n,
  0x1000n,
  0x3000n,
  (1n << 63n) | 0x5000n,
  1n << 62n,
  (1n << 56n) - 512n,
  1n << 40n,
  (1n << 64n) - 1n,
];
const HOSTILE_32 = [0, 1, 2, 0x400, 0x1_0000, 0x40_0000, 0x7fff_ffff, 0xffff_ffff];
const HOSTILE_16 = [0, 1, 255, 0x7fff, 0xffff];

const NUMBER_AT = { snapshots: 60, snapshotsOffset: 64 } as const;

/** Fields of the first entry: offset and width in bits. */
const FIELDS: readonly (readonly [at: number, bits: 16 | 32 | 64])[] = [
  [0, 64],
  [8, 32],
  [12, 16],
  [14, 16],
  [16, 32],
  [24, 64],
  [32, 32],
  [36, 32],
  [40, 64],
  [48, 64],
  [56, 64],
];

const put = (image: DataView, at: number, bits: 16 | 32 | 64, random: Random): void => {
  if (bits === 64) image.setBigUint64(at, random.pick(HOSTILE_64));
  else if (bits === 32) image.setUint32(at, random.pick(HOSTILE_32));
  else image.setUint16(at, random.pick(HOSTILE_16));
};

/** Changes a few fields of the structures that snapshots have. */
const damage = (bytes: Uint8Array, random: Random): void => {
  const image = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const table = Number(image.getBigUint64(NUMBER_AT.snapshotsOffset));
  const l1 = Number(image.getBigUint64(table));
  const l2 = Number(image.getBigUint64(l1) & 0x00ff_ffff_ffff_fe00n);
  const times = 1 + random.below(3);
  for (let i = 0; i < times; i++) {
    const kind = random.below(10);
    if (kind < 5) {
      const [at, bits] = random.pick(FIELDS);
      put(image, table + at, bits, random);
    } else if (kind === 5) put(image, NUMBER_AT.snapshots, 32, random);
    else if (kind === 6) put(image, NUMBER_AT.snapshotsOffset, 64, random);
    else if (kind === 7) put(image, l1 + 8 * random.below(4), 64, random);
    else if (kind === 8) {
      // Another table's offset: the same table twice, the active one, or a data cluster.
      const from = random.pick([l1, l1 + 8, l2, 40]);
      image.setBigUint64(l1 + 8 * random.below(4), image.getBigUint64(from));
    } else put(image, l2 + 8 * random.below(64), 64, random);
  }
};

const tolerate = async <T>(work: Promise<T>): Promise<T | null> => {
  let timer: NodeJS.Timeout | undefined;
  const hang = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`hangs for ${HANG_MS} ms`)), HANG_MS);
  });
  try {
    return await Promise.race([work, hang]);
  } catch (error) {
    const text = error instanceof Error ? (error.stack ?? '') : String(error);
    assert.ok(error instanceof BlockError, text);
    assert.ok(!/this cannot be/.test(error.message), `an assertion met hostile input: ${text}`);
    return null;
  } finally {
    clearTimeout(timer);
  }
};

const show = async (graph: Graph, path: string, snapshot: string): Promise<void> => {
  const view = await graph.open({ path, format: 'qcow2', readOnly: true, snapshot });
  try {
    const bytes = new Uint8Array(64 << 10);
    const length = Math.min(bytes.length, view.lengthBytes);
    await tolerate(view.read(guestOffset(0), bytes.subarray(0, length)));
  } finally {
    await graph.close(view);
  }
};

const exercise = async (node: Node, graph: Graph, random: Random): Promise<void> => {
  const list = (): Promise<readonly SnapshotDescription[] | null> =>
    tolerate(node.withSnapshots('list', (snapshots) => snapshots.list()));
  const request = { name: 'new', dateSeconds: 1, dateNanoseconds: 1 };
  for (let i = 0; i < 4; i++) {
    const found = (await list())?.slice(0, 4) ?? [];
    const id = found.length === 0 ? '1' : random.pick(found).id;
    await tolerate(show(graph, node.path, id));
    const kind = random.pick(['create', 'apply', 'remove'] as const);
    await tolerate(
      node.withSnapshots(kind, async (snapshots) => {
        if (kind === 'create') await snapshots.create(request);
        else await snapshots[kind](id);
      }),
    );
    await tolerate(node.write(guestOffset(random.below(200 << 10)), new Uint8Array(5000).fill(9)));
    await tolerate(node.flush());
  }
};

test('hostile snapshots give errors, not crashes', async (t) => {
  const directory = await scratchDirectory(t);
  const made = `${directory}/made.qcow2`;
  const options = `cluster_size=${CLUSTER_BYTES}`;
  await qemuImg(['create', '-q', '-f', 'qcow2', '-o', options, made, '8M']);
  await qemuIo(made, ['write -P 1 0 200k', 'write -P 2 3M 40k', 'write -z 300k 20k']);
  await qemuImg(['snapshot', '-c', 'first', made]);
  await qemuIo(made, ['write -P 3 64k 64k', 'write -P 4 5M 8k']);
  await qemuImg(['snapshot', '-c', 'second', made]);
  const sound = new Uint8Array(await readFile(made));
  const random = seededRandom(SEED);
  const before = process.memoryUsage().rss;
  let failed = 0;
  for (let i = 0; i < COUNT; i++) {
    const bytes = Uint8Array.from(sound);
    damage(bytes, random);
    const path = `${directory}/hostile.qcow2`;
    await writeFile(path, bytes);
    const graph = await testGraph({ directory });
    const node = await tolerate(graph.open({ path, format: 'qcow2', readOnly: false }));
    if (node === null) {
      failed++;
      continue;
    }
    await exercise(node, graph, random);
    await tolerate(graph.close(node));
  }
  assert.ok(failed < COUNT / 2, 'most of them open');
  assert.ok(process.memoryUsage().rss - before < MEMORY_BYTES, 'memory stays within its bound');
});

test('an L1 table of 4 MiB over a sparse file, or one table named by all of it, ends in time', async (t) => {
  const directory = await scratchDirectory(t);
  for (const repeated of [true, false]) {
    const path = `${directory}/large-${repeated}.qcow2`;
    await qemuImg(['create', '-q', '-f', 'qcow2', path, '1M']);
    await qemuIo(path, ['write -P 1 0 64k']);
    await qemuImg(['snapshot', '-c', 's', path]);
    const bytes = await readFile(path);
    const table = Number(bytes.readBigUInt64BE(NUMBER_AT.snapshotsOffset));
    const l2 = bytes.readBigUInt64BE(Number(bytes.readBigUInt64BE(table)));
    const l1 = Buffer.alloc(4 << 20);
    for (let i = 0; i < l1.length / 8; i++) {
      const offset = repeated ? l2 : BigInt(i + 1024) * 0x1_0000n;
      l1.writeBigUInt64BE(offset, i * 8);
    }
    const at = Math.ceil(bytes.length / 0x1_0000) * 0x1_0000;
    bytes.writeBigUInt64BE(BigInt(at), table);
    bytes.writeUInt32BE(l1.length / 8, table + 8);
    await writeFile(path, Buffer.concat([bytes, Buffer.alloc(at - bytes.length), l1]));
    if (!repeated) await qemuImg(['resize', '-q', '-f', 'raw', path, '40G']);
    const graph = await testGraph({ directory });
    const node = await graph.open({ path, format: 'qcow2', readOnly: false });
    for (const kind of ['apply', 'remove'] as const)
      await tolerate(node.withSnapshots(kind, (snapshots) => snapshots[kind]('1')));
    await graph.close(node);
  }
});
