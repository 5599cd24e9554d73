/**
 * Images whose tables hold anything: an error that names field and offset, or content, but never a crash, a hang, or memory
 * beyond a bound; and what was read before stays readable.
 */
import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import { BlockError } from '../../src/base/block-error.ts';
import { type Random, seededRandom } from '../../src/base/random.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { Node } from '../../src/block/node.ts';
import { qemuImg, qemuIo } from '../support/qemu-img.ts';
import { countOf, SEED } from '../support/run-parameters.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';

const COUNT = countOf(150);
const HANG_MS = 20_000;
const MEMORY_BYTES = 256 << 20;

const HOSTILE = [
  0n,
  1n,
  0x200n,
  0x1000n,
  1n << 62n,
  1n << 63n,
  (1n << 63n) | 0x1000n,
  (1n << 56n) - 512n,
  (1n << 64n) - 1n,
  1n << 40n,
];

const damage = (image: Uint8Array, random: Random): void => {
  const view = new DataView(image.buffer, image.byteOffset, image.byteLength);
  const times = 1 + random.below(6);
  for (let i = 0; i < times; i++) {
    const at = random.below(Math.floor(image.length / 8)) * 8;
    const value =
      random.below(3) === 0
        ? BigInt(random.below(2 ** 31)) * BigInt(random.below(2 ** 31))
        : random.pick(HOSTILE);
    view.setBigUint64(at, BigInt.asUintN(64, value));
  }
};

const inTime = async <T>(work: Promise<T>): Promise<T> => {
  let timer: NodeJS.Timeout | undefined;
  const hang = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`hangs for ${HANG_MS} ms`)), HANG_MS);
  });
  try {
    return await Promise.race([work, hang]);
  } finally {
    clearTimeout(timer);
  }
};

/** Errors of the image are what it may give; everything else is a fault of ours. */
const tolerate = async (work: Promise<unknown>): Promise<void> => {
  try {
    await inTime(work);
  } catch (error) {
    assert.ok(
      error instanceof BlockError,
      error instanceof Error ? (error.stack ?? '') : String(error),
    );
    assert.ok(
      !/this cannot be/.test(error.message),
      `an assertion met hostile input: ${error.message}`,
    );
  }
};

const exercise = async (node: Node, random: Random): Promise<void> => {
  const bytes = new Uint8Array(8192);
  for (let i = 0; i < 12; i++) {
    const at = guestOffset(random.below(Math.max(1, node.lengthBytes - bytes.length)));
    if (node.lengthBytes < bytes.length) return;
    await tolerate(node.read(at, bytes));
    await tolerate(node.blockStatus(at, bytes.length));
    await tolerate(node.write(at, bytes));
    await tolerate(node.discard(at, bytes.length));
  }
  await tolerate(node.flush());
};

test('hostile tables give errors, not crashes', async (t) => {
  const directory = await scratchDirectory(t);
  const made = `${directory}/made.qcow2`;
  await qemuImg(['create', '-q', '-f', 'qcow2', '-o', 'cluster_size=1k', made, '1M']);
  await qemuIo(
    made,
    ['write -P 1 0 200k', 'write -z 300k 20k', 'write -P 3 500k 10k'],
    ['-f', 'qcow2'],
  );
  await qemuImg(['snapshot', '-c', 's', made]);
  const sound = new Uint8Array(await readFile(made));
  const random = seededRandom(SEED);
  const before = process.memoryUsage().rss;
  for (let i = 0; i < COUNT; i++) {
    const image = Uint8Array.from(sound);
    damage(image, random);
    const path = `${directory}/hostile.qcow2`;
    await writeFile(path, image);
    const graph = await testGraph({ directory });
    let node: Node | null = null;
    await tolerate(
      graph.open({ path, format: 'qcow2', readOnly: random.below(3) === 0 }).then((opened) => {
        node = opened;
      }),
    );
    if (node !== null) {
      await exercise(node, random);
      await tolerate(graph.close(node));
    }
  }
  assert.ok(process.memoryUsage().rss - before < MEMORY_BYTES, 'memory stays within its bound');
});
