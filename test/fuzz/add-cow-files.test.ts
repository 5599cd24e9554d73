/** Add-cow files that hold anything: an error, or content, but never a crash, a hang, or memory beyond a bound. */
import assert from 'node:assert/strict';
import { truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import fc from 'fast-check';
import { BlockError } from '../../src/base/block-error.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { Node } from '../../src/block/node.ts';
import { encodeAddCow } from '../support/add-cow-file.ts';
import { countOf, SEED } from '../support/run-parameters.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';

const RUNS = countOf(150);
const MEMORY_BYTES = 128 << 20;

/** Errors of the image are what it may give; an assertion that meets its bytes is a fault of ours. */
const tolerate = async <T>(work: () => Promise<T>): Promise<T | null> => {
  try {
    return await work();
  } catch (error) {
    assert.ok(error instanceof BlockError, error instanceof Error ? error.stack : String(error));
    assert.ok(!/this cannot be/.test(error.message), error.message);
    return null;
  }
};

const exercise = async (node: Node): Promise<void> => {
  const length = Math.min(8192, node.lengthBytes);
  const end = node.lengthBytes - length;
  for (const at of [0, Math.floor(end / 2), end]) {
    await tolerate(() => node.read(guestOffset(at), new Uint8Array(length)));
    await tolerate(() => node.write(guestOffset(at), new Uint8Array(length).fill(7)));
    await tolerate(() => node.discard(guestOffset(at), length));
    if (node.lengthBytes > 0) await tolerate(() => node.blockStatus(guestOffset(at), length || 1));
  }
  await tolerate(() => node.resize(node.lengthBytes + 12_345));
  await tolerate(() => node.flush());
};

const FIELDS = [0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 60, 76, 84];

test(`damaged add-cow files are refused or read, seed ${SEED}`, async (t) => {
  const directory = await scratchDirectory(t);
  const path = join(directory, 'disk.add-cow');
  const sound = encodeAddCow({
    clusterBytes: 4096,
    backing: { name: 'base.raw', format: 'raw' },
    image: { name: 'disk.raw', format: 'raw' },
    isAllAllocated: false,
    bits: Array.from({ length: 64 }, (_, i) => i % 3 === 0),
  });
  const edit = fc.record({
    at: fc.oneof(fc.constantFrom(...FIELDS), fc.nat(sound.length - 4)),
    value: fc.oneof(
      fc.constantFrom(0, 1, 75, 76, 77, 4095, 4096, 0x7fff_ffff, 0xffff_ffff),
      fc.integer({ min: 0, max: 0xffff_ffff }),
    ),
  });
  const damage = fc.record({
    edits: fc.array(edit, { maxLength: 5 }),
    length: fc.oneof(fc.constant(sound.length), fc.nat(sound.length * 2)),
    imageBytes: fc.constantFrom(0, 1, 4096, 64 * 4096, 64 * 4096 + 1, 2 ** 40, 2 ** 43 - 4096),
  });
  const before = process.memoryUsage().rss;
  await fc.assert(
    fc.asyncProperty(damage, async ({ edits, length, imageBytes }) => {
      const bytes = Buffer.from(sound);
      for (const { at, value } of edits) bytes.writeUInt32LE(value, at);
      await writeFile(path, bytes);
      await truncate(path, length);
      for (const name of ['disk.raw', 'base.raw']) await writeFile(join(directory, name), '');
      await truncate(join(directory, 'disk.raw'), imageBytes);
      await truncate(join(directory, 'base.raw'), 10_000);
      const graph = await testGraph({ directory });
      for (const readOnly of [true, false]) {
        const node = await tolerate(() => graph.open({ path, format: 'add-cow', readOnly }));
        if (node === null) continue;
        await exercise(node);
        await tolerate(() => graph.close(node));
      }
      assert.equal(graph.nodes.size, 0);
    }),
    { seed: SEED, numRuns: RUNS },
  );
  const grown = process.memoryUsage().rss - before;
  assert.ok(grown < MEMORY_BYTES, `memory grew by ${grown >> 20} MiB`);
});
