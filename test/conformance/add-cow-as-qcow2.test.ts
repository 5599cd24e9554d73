/** A guest cannot tell an add-cow image from a qcow2 image: the same operations, the same bytes, over the same base. */
import assert from 'node:assert/strict';
import { truncate, writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import { type Random, seededRandom } from '../../src/base/random.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { Node } from '../../src/block/node.ts';
import { writeAddCow } from '../support/add-cow-file.ts';
import { assertClean, qemuImg } from '../support/qemu-img.ts';
import { countOf, SEED } from '../support/run-parameters.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';

const STEPS = countOf(80);
const SECTOR = 512;
const MAX_SECTORS = 1600;

/** One operation, done to each of them. */
const nextStep = (random: Random, sizeBytes: number): ((node: Node) => Promise<void>) => {
  const kind = random.below(20);
  if (kind === 0) {
    const now = SECTOR * (200 + random.below(MAX_SECTORS - 200));
    return (node) => node.resize(now);
  }
  if (kind === 1) return (node) => node.flush();
  const length = 1 + random.below(random.below(4) === 0 ? 60_000 : 5000);
  const offset = random.below(sizeBytes - length);
  const at = guestOffset(offset);
  if (kind < 5) return (node) => node.discard(at, length);
  if (kind < 8) {
    const unmap = random.below(2) === 0;
    return (node) => node.writeZeroes(at, length, { unmap });
  }
  if (kind < 9) return (node) => node.allocate(at, length);
  const bytes = new Uint8Array(length);
  random.fill(bytes);
  return (node) => node.write(at, bytes);
};

const contentOf = async (node: Node): Promise<Buffer> => {
  const bytes = Buffer.alloc(node.lengthBytes);
  await node.read(guestOffset(0), bytes);
  return bytes;
};

for (const { baseSectors, imageFormat } of [
  { baseSectors: 500, imageFormat: 'raw' },
  { baseSectors: 1500, imageFormat: 'raw' },
  { baseSectors: 1100, imageFormat: 'qcow2' },
]) {
  test(`same bytes as a qcow2: base of ${baseSectors} sectors, ${imageFormat} image file, seed ${SEED}`, async (t) => {
    const directory = await scratchDirectory(t);
    const path = (name: string): string => `${directory}/${name}`;
    const random = seededRandom(SEED + baseSectors);
    const base = Buffer.alloc(baseSectors * SECTOR);
    random.fill(base);
    await writeFile(path('base'), base);
    const sizeBytes = 1000 * SECTOR;
    const twin = [
      'create',
      '-q',
      '-f',
      'qcow2',
      '-o',
      'cluster_size=4k',
      '-b',
      'base',
      '-F',
      'raw',
    ];
    await qemuImg([...twin, path('twin.qcow2'), String(sizeBytes)]);
    if (imageFormat === 'qcow2')
      await qemuImg(['create', '-q', '-f', 'qcow2', path('image'), String(sizeBytes)]);
    else {
      await writeFile(path('image'), '');
      await truncate(path('image'), sizeBytes);
    }
    await writeAddCow(path('disk.add-cow'), {
      clusterBytes: 4096,
      backing: { name: 'base', format: 'raw' },
      image: { name: 'image', format: imageFormat },
      isAllAllocated: false,
      bits: new Array<boolean>(Math.ceil(sizeBytes / 4096)).fill(false),
    });
    const graph = await testGraph({ directory });
    const open = (name: string): Promise<Node> =>
      graph.open({ path: path(name), format: null, readOnly: false });
    let nodes = [await open('twin.qcow2'), await open('disk.add-cow')] as const;
    for (let i = 0; i < STEPS; i++) {
      const step = nextStep(random, nodes[0].lengthBytes);
      await Promise.all(nodes.map(step));
      const [twinBytes, ownBytes] = await Promise.all(nodes.map(contentOf));
      assert.ok(twinBytes !== undefined && ownBytes?.equals(twinBytes), `after step ${i}`);
      if (random.below(20) > 0) continue;
      for (const node of nodes) await graph.close(node);
      nodes = [await open('twin.qcow2'), await open('disk.add-cow')];
    }
    for (const node of nodes) await graph.close(node);
    await assertClean(path('twin.qcow2'));
  });
}
