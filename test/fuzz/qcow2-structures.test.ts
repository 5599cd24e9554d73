/**
 * Each structure of the format with hostile values: fields past every bound, tables past the end, on each other and on
 * themselves, bitmaps of subclusters that contradict themselves, packed data that is too much or too little. An error that
 * says what is where, or content; never a crash, a hang, or memory beyond a bound.
 */
import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { type TestContext, test } from 'node:test';
import { deflateRawSync } from 'node:zlib';
import fc from 'fast-check';
import { qcow2 } from '../../drivers/qcow2/index.ts';
import { present } from '../../src/base/assert.ts';
import { BlockError } from '../../src/base/block-error.ts';
import { viewOf } from '../../src/base/byte-order.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { Node } from '../../src/block/node.ts';
import { qemuImg, qemuIo } from '../support/qemu-img.ts';
import { countOf, SEED } from '../support/run-parameters.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';

const RUNS = countOf(12);
const HANG_MS = 30_000;
/** Beyond what the process has before: the check's counters, tables of the largest allowed size, and what is not collected yet. */
const MEMORY_BYTES = 256 << 20;

const STRUCTURES = [
  'header',
  'extensions',
  'l1',
  'l2',
  'refcountTable',
  'refcountBlock',
  'snapshotTable',
] as const;
type Structure = (typeof STRUCTURES)[number];

/** Where each structure begins, and how many bytes of it are worth damaging. */
type Places = Record<Structure, { readonly at: number; readonly lengthBytes: number }>;

const OFFSET_MASK = (1n << 56n) - 512n;

const placesOf = (image: Uint8Array): Places => {
  const view = viewOf(image);
  const offsetAt = (at: number): number => Number(view.getBigUint64(at) & OFFSET_MASK);
  const l1 = offsetAt(40);
  const refcountTable = offsetAt(48);
  return {
    header: { at: 4, lengthBytes: 108 },
    extensions: { at: 112, lengthBytes: 96 },
    l1: { at: l1, lengthBytes: view.getUint32(36) * 8 },
    l2: { at: offsetAt(l1), lengthBytes: 1024 },
    refcountTable: { at: refcountTable, lengthBytes: 16 },
    refcountBlock: { at: offsetAt(refcountTable), lengthBytes: 256 },
    snapshotTable: { at: offsetAt(64), lengthBytes: 64 },
  };
};

interface Damage {
  /** In units of four bytes: fields of 32 bits, and halves of those of 64. */
  readonly word: number;
  readonly isLong: boolean;
  readonly value: bigint;
}

/** `places`: what else lies in the file, so that tables are put on each other and on themselves. */
const damageOf = (places: Places): fc.Arbitrary<Damage> => {
  const offsets = Object.values(places).map((p) => BigInt(p.at - (p.at % 512)));
  const flags = fc.constantFrom(0n, 1n << 63n, 1n << 62n, 3n << 62n);
  const near = fc.constantFrom(...offsets, 1n << 40n, (1n << 56n) - 512n, 1n << 53n, 512n);
  const pointer = fc.tuple(flags, near).map(([flag, offset]) => flag | offset);
  const value = fc.oneof(
    pointer,
    fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }),
    fc.constantFrom(0n, 1n, (1n << 32n) - 1n, (1n << 64n) - 1n, 0x7fff_ffffn, 0xffffn, 0x100_0001n),
    fc.bigInt({ min: 0n, max: 300n }),
  );
  return fc.record({ word: fc.nat(255), isLong: fc.boolean(), value });
};

const damaged = (
  sound: Uint8Array,
  place: Places[Structure],
  damage: readonly Damage[],
): Uint8Array => {
  const image = Uint8Array.from(sound);
  const view = viewOf(image);
  for (const { word, isLong, value } of damage) {
    const step = isLong ? 8 : 4;
    const at = place.at + ((word * step) % Math.max(step, place.lengthBytes));
    if (at + step > image.length) continue;
    if (isLong) view.setBigUint64(at, value);
    else view.setUint32(at, Number(value & 0xffff_ffffn));
  }
  return image;
};

/** Errors of the image are what it may give, and say where and what; everything else is a fault of ours. */
const tolerate = async (work: Promise<unknown>): Promise<void> => {
  let timer: NodeJS.Timeout | undefined;
  const hang = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`hangs for ${HANG_MS} ms`)), HANG_MS);
  });
  try {
    await Promise.race([work, hang]);
  } catch (error) {
    const text = error instanceof Error ? (error.stack ?? '') : String(error);
    assert.ok(error instanceof BlockError, text);
    assert.ok(!/this cannot be/.test(error.message), `an assertion met hostile input: ${text}`);
    assert.notEqual(error.path ?? null, null, `it names no file: ${text}`);
    if (error.kind !== 'invalid-image') return;
    assert.match(error.message, /\d|'|no refcount block/, `it names no value: ${text}`);
  } finally {
    clearTimeout(timer);
  }
};

const exercise = async (node: Node): Promise<void> => {
  const bytes = new Uint8Array(5000);
  const starts = [0, 3000, 100_000, 262_144, 300_000, node.lengthBytes - bytes.length];
  for (const start of starts.filter((s) => s >= 0 && s + bytes.length <= node.lengthBytes)) {
    const at = guestOffset(start);
    await tolerate(node.read(at, bytes));
    await tolerate(node.blockStatus(at, bytes.length));
    if (node.readOnly) continue;
    await tolerate(node.write(at, bytes));
    await tolerate(node.discard(at, bytes.length));
    await tolerate(node.writeZeroes(at, bytes.length, { unmap: false }));
  }
  await tolerate(node.driver.snapshots?.list() ?? Promise.resolve());
  await tolerate(node.flush());
};

const useAll = async (directory: string, path: string, readOnly: boolean): Promise<void> => {
  const graph = await testGraph({ directory });
  const flat = await graph.open({ path, format: 'raw', readOnly: true });
  const file = present(flat.file, 'a raw image has a file');
  await tolerate(present(qcow2.inspect, 'it can')(file, path));
  const openImage = () => graph.open({ path, format: 'qcow2', readOnly: true });
  await tolerate(present(qcow2.check, 'it can')({ file, path, repair: 'none', openImage }));
  await graph.close(flat);
  let node: Node | null = null;
  const opening = graph.open({ path, format: 'qcow2', readOnly }).then((opened) => {
    node = opened;
  });
  await tolerate(opening);
  if (node === null) return;
  await exercise(node);
  await tolerate(graph.close(node));
};

const IMAGES = [
  { name: 'small clusters', options: 'cluster_size=1k', packed: 1024 },
  { name: 'subclusters', options: 'extended_l2=on,cluster_size=16k', packed: 16_384 },
];

const makeSound = async (path: string, options: string, packed: number): Promise<void> => {
  await qemuImg(['create', '-q', '-f', 'qcow2', '-o', options, path, '512k']);
  const packedAt = 262_144;
  await qemuIo(
    path,
    ['write -P 1 0 120k', 'write -z 130k 3k', `write -c -P 9 ${packedAt} ${packed}`],
    ['-f', 'qcow2'],
  );
  await qemuImg(['snapshot', '-c', 's', path]);
};

const bounded = (t: TestContext): (() => void) => {
  const before = process.memoryUsage().rss;
  return () => {
    const grown = process.memoryUsage().rss - before;
    t.diagnostic(`${Math.round(grown / 2 ** 20)} MiB more`);
    assert.ok(grown < MEMORY_BYTES, `memory grew by ${grown} bytes`);
  };
};

for (const { name, options, packed } of IMAGES) {
  for (const structure of STRUCTURES) {
    test(`hostile values give errors that say what is where: ${structure}, ${name}`, async (t) => {
      const directory = await scratchDirectory(t);
      const path = `${directory}/hostile.qcow2`;
      await makeSound(path, options, packed);
      const sound = new Uint8Array(await readFile(path));
      const places = placesOf(sound);
      const assertBounded = bounded(t);
      const damage = fc.array(damageOf(places), { minLength: 1, maxLength: 3 });
      await fc.assert(
        fc.asyncProperty(damage, fc.boolean(), async (changes, readOnly) => {
          await writeFile(path, damaged(sound, places[structure], changes));
          await useAll(directory, path, readOnly);
        }),
        { seed: SEED, numRuns: RUNS, endOnFailure: true },
      );
      assertBounded();
    });
  }
}

test('packed data that is too much, too little or nothing is an error of that cluster alone', async (t) => {
  const directory = await scratchDirectory(t);
  const path = `${directory}/packed.qcow2`;
  const source = `${directory}/source.raw`;
  const clusterBytes = 65_536;
  // Half of it cannot be packed: so its place has room for what is put there.
  const content = new Uint8Array(2 * clusterBytes);
  for (let i = 0; i < content.length; i++) content[i] = (i * i * 2654435761) >>> 24;
  content.fill(1, 30_000, clusterBytes).fill(1, clusterBytes + 30_000);
  await writeFile(source, content);
  await qemuImg(['convert', '-c', '-f', 'raw', '-O', 'qcow2', source, path]);
  const sound = new Uint8Array(await readFile(path));
  const entry = viewOf(sound).getBigUint64(placesOf(sound).l2.at);
  const place = Number(entry & ((1n << 54n) - 1n));
  const assertBounded = bounded(t);
  const packed: readonly Uint8Array[] = [
    deflateRawSync(new Uint8Array(16 << 20)),
    deflateRawSync(new Uint8Array(clusterBytes + 1)),
    deflateRawSync(new Uint8Array(clusterBytes - 1)),
    deflateRawSync(new Uint8Array(0)),
    new Uint8Array(2000),
    new Uint8Array(2000).fill(0xff),
  ];
  for (const [i, bytes] of packed.entries()) {
    const image = Uint8Array.from(sound);
    image.fill(0, place, place + 20_000);
    image.set(bytes, place);
    await writeFile(path, image);
    const graph = await testGraph({ directory });
    const node = await graph.open({ path, format: 'qcow2', readOnly: true });
    const found = new Uint8Array(clusterBytes);
    await assert.rejects(node.read(guestOffset(0), found), (error: unknown) => {
      assert.ok(error instanceof BlockError && error.errno === 'EIO', `case ${i}: ${error}`);
      assert.match(error.message, /compressed cluster 0x4\w+ /);
      assert.equal(error.offset, place);
      return true;
    });
    await node.read(guestOffset(clusterBytes), found);
    assert.ok(Buffer.from(found).equals(content.subarray(clusterBytes)), 'its neighbour is read');
    await graph.close(node);
  }
  assertBounded();
});
