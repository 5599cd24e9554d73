import assert from 'node:assert/strict';
import { stat } from 'node:fs/promises';
import { test } from 'node:test';
import { seededRandom } from '../../src/base/random.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { Node } from '../../src/block/node.ts';
import { assertClean, qemuImg, qemuIo } from '../support/qemu-img.ts';
import { countOf, SEED } from '../support/run-parameters.ts';
import { type Cleanup, scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';

const MIB = 1 << 20;

const opened = async (
  t: Cleanup,
  options: { readonly o: string; readonly discard?: 'unmap' | 'ignore' },
): Promise<{ path: string; node: Node; close: () => Promise<void> }> => {
  const directory = await scratchDirectory(t);
  const path = `${directory}/disk.qcow2`;
  await qemuImg(['create', '-q', '-f', 'qcow2', '-o', options.o, path, '16M']);
  const graph = await testGraph({ directory, discard: options.discard ?? 'unmap' });
  const node = await graph.open({ path, format: 'qcow2', readOnly: false });
  return { path, node, close: () => graph.close(node) };
};

test('the file becomes shorter when what is last in it was discarded', async (t) => {
  // Small clusters have more tables, which stay where they are: one of them ends the file.
  for (const [o, limit] of [
    ['cluster_size=64k', 3.5 * MIB],
    ['cluster_size=4k,refcount_bits=1', 5.5 * MIB],
    ['compat=0.10', 3.5 * MIB],
  ] as const) {
    const { path, node, close } = await opened(t, { o });
    await node.write(guestOffset(0), new Uint8Array(8 * MIB).fill(1));
    await node.flush();
    assert.ok((await stat(path)).size > 8 * MIB);
    await node.discard(guestOffset(3 * MIB), 13 * MIB);
    await node.flush();
    await close();
    const { size } = await stat(path);
    assert.ok(size < limit, `${o}: ${size} bytes are left`);
    await assertClean(path);
    await qemuIo(path, [
      'read -P 1 0 3M',
      'read -P 0 3M 13M',
      'write -P 5 4M 2M',
      'read -P 5 4M 2M',
    ]);
    await assertClean(path);
  }
});

test('while it is open the file follows, and what is written next is kept', async (t) => {
  const { path, node, close } = await opened(t, { o: 'cluster_size=64k' });
  await node.write(guestOffset(0), new Uint8Array(8 * MIB).fill(1));
  await node.flush();
  await node.discard(guestOffset(MIB), 7 * MIB);
  for (let i = 0; i < 100 && (await stat(path)).size > 2 * MIB; i++) {
    await node.flush();
    await new Promise((resolve) => setTimeout(resolve, 20));
    // A checkpoint has something to write: the refcounts of what was given back.
  }
  assert.ok((await stat(path)).size < 2 * MIB);
  await node.write(guestOffset(5 * MIB), new Uint8Array(MIB).fill(6));
  await close();
  await assertClean(path);
  await qemuIo(path, ['read -P 1 0 1M', 'read -P 6 5M 1M', 'read -P 0 6M 2M']);
});

test('with --discard ignore the file stays as long as it is', async (t) => {
  const { path, node, close } = await opened(t, { o: 'cluster_size=64k', discard: 'ignore' });
  await node.write(guestOffset(0), new Uint8Array(4 * MIB).fill(1));
  await node.discard(guestOffset(MIB), 3 * MIB);
  await close();
  assert.ok((await stat(path)).size > 4 * MIB);
  await assertClean(path);
});

test(`writes, discards and flushes at the same time lose nothing to the cut (seed ${SEED})`, async (t) => {
  const { path, node, close } = await opened(t, { o: 'cluster_size=4k' });
  const random = seededRandom(SEED);
  const model = new Uint8Array(16 * MIB);
  const part = MIB;
  const worker = async (index: number): Promise<void> => {
    for (let i = 0; i < countOf(25); i++) {
      const at = index * part + random.below(part - 200_000);
      const length = 1 + random.below(200_000);
      if (random.below(3) > 0) {
        const bytes = new Uint8Array(length).fill(1 + random.below(255));
        model.set(bytes, at);
        await node.write(guestOffset(at), bytes);
      } else {
        model.fill(0, at, at + length);
        await node.discard(guestOffset(at), length);
      }
      if (random.below(6) === 0) await node.flush();
    }
  };
  await Promise.all(Array.from({ length: 16 }, (_, index) => worker(index)));
  const found = new Uint8Array(model.length);
  await node.read(guestOffset(0), found);
  assert.deepEqual(found, model);
  await close();
  await assertClean(path);
});
