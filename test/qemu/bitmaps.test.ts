/** Persistent dirty bitmaps: QEMU and vdiskfs list the same ones, and see the same bits, whoever wrote them. */
import assert from 'node:assert/strict';
import { copyFile, open, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { seededRandom } from '../../src/base/random.ts';
import { guestOffset } from '../../src/base/units.ts';
import { DirtyBitmap } from '../../src/block/dirty-bitmap.ts';
import { TrackedBitmap } from '../../src/block/dirty-tracking.ts';
import type { Node } from '../../src/block/node.ts';
import { dirtyRanges, listedBitmaps } from '../support/qemu-bitmaps.ts';
import { assertClean, qemuImg, qemuImgJson, qemuIo } from '../support/qemu-img.ts';
import { SEED } from '../support/run-parameters.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';
import { vdiskfs, vdiskfsJson } from '../support/vdiskfs.ts';

const M = 1 << 20;

const create = async (
  directory: string,
  options: string,
  size: string,
  backing?: string,
): Promise<string> => {
  const image = join(directory, 'disk.qcow2');
  const below = backing === undefined ? [] : ['-b', backing, '-F', 'raw'];
  await qemuImg(['create', '-q', '-f', 'qcow2', '-o', options, ...below, image, size]);
  return image;
};

const add = (image: string, name: string, granularity = 65536): Promise<string> =>
  qemuImg(['bitmap', '--add', '-g', String(granularity), image, name]);

/** Opens the image for writing, and closes it after `work`. */
const using = async (image: string, work: (node: Node) => Promise<void>): Promise<void> => {
  const graph = await testGraph({ directory: join(image, '..') });
  const node = await graph.open({ path: image, format: 'qcow2', readOnly: false });
  try {
    await work(node);
  } finally {
    await graph.close(node);
  }
};

const write = (node: Node, offset: number, lengthBytes: number): Promise<void> =>
  node.write(guestOffset(offset), new Uint8Array(lengthBytes).fill(7));

const rangesOf = (bitmap: DirtyBitmap): [number, number][] =>
  [...bitmap.dirtyRanges()].map((r) => [r.start, r.start + r.lengthBytes]);

const persistent = (node: Node, name: string, granularityBytes: number): TrackedBitmap => {
  node.driver.bitmapStore?.checkNew(name, granularityBytes);
  const content = new DirtyBitmap({ lengthBytes: node.lengthBytes, granularityBytes });
  return new TrackedBitmap({ name, content, recording: true, persistent: true });
};

const flagsOf = async (image: string, name: string): Promise<readonly string[] | undefined> =>
  (await listedBitmaps(image, ['-U'])).find((b) => b.name === name)?.flags;

describe('dirty bitmaps', () => {
  for (const clusterBytes of [512, 4096, 65536]) {
    test(`of guests' writes are as QEMU reads them, in clusters of ${clusterBytes} bytes`, async (t) => {
      const directory = await scratchDirectory(t);
      const size = clusterBytes === 512 ? 20 * M : 300 * M;
      const image = await create(directory, `cluster_size=${clusterBytes}`, String(size));
      await add(image, 'fine', 512);
      await add(image, 'coarse', 65536);
      await add(image, 'idle', 4096);
      await qemuImg(['bitmap', '--disable', image, 'idle']);
      await qemuIo(image, ['write -P 1 100k 30k', `write -P 2 ${size - 512} 512`]);
      const fine = new DirtyBitmap({ lengthBytes: size, granularityBytes: 512 });
      for (const [start, end] of await dirtyRanges(directory, image, 'fine'))
        fine.mark(start, end - start);
      assert.equal(fine.dirtyBytes, 30 * 1024 + 512, 'the oracle reads what qemu-io wrote');
      const random = seededRandom(SEED + clusterBytes);
      // Twice: what was saved the first time is replaced.
      for (let round = 0; round < 2; round++) {
        await using(image, async (node) => {
          const loaded = [...node.dirtyBitmaps.bitmaps].map((b) => [b.name, b.recording]);
          assert.deepEqual(loaded, [
            ['fine', true],
            ['coarse', true],
            ['idle', false],
          ]);
          assert.deepEqual(rangesOf(node.dirtyBitmaps.get('fine').content), rangesOf(fine));
          for (let i = 0; i < 25; i++) {
            const length = 1 + random.below(9000);
            const offset = random.below(size - length);
            if (i % 5 === 0) await node.discard(guestOffset(offset), length);
            else await write(node, offset, length);
            fine.mark(offset, length);
          }
          assert.deepEqual(await flagsOf(image, 'fine'), ['in-use', 'auto']);
          assert.deepEqual(await flagsOf(image, 'idle'), [], 'nothing writes to it');
        });
        await assertClean(image);
        const coarse = new DirtyBitmap({ lengthBytes: size, granularityBytes: 65536 });
        coarse.merge(fine);
        assert.deepEqual(await dirtyRanges(directory, image, 'fine'), rangesOf(fine));
        assert.deepEqual(await dirtyRanges(directory, image, 'coarse'), rangesOf(coarse));
        assert.deepEqual(await dirtyRanges(directory, image, 'idle'), []);
        assert.deepEqual(await flagsOf(image, 'fine'), ['auto']);
      }
    });
  }

  test('are listed as qemu-img lists them, for programs and for people', async (t) => {
    const image = await create(await scratchDirectory(t), 'cluster_size=64k', '10M');
    await add(image, 'a bitmap: é', 4096);
    await add(image, 'b');
    await qemuImg(['bitmap', '--disable', image, 'b']);
    assert.deepEqual(await vdiskfsJson(['info', image]), await qemuImgJson('info', [image]));
    assert.equal((await vdiskfs(['info', image])).stdout, await qemuImg(['info', image]));
  });

  test('are marked in_use before the first write, and inconsistent when they were never saved', async (t) => {
    const directory = await scratchDirectory(t);
    const image = await create(directory, 'cluster_size=64k', '10M');
    const crashed = join(directory, 'crashed.qcow2');
    await add(image, 'auto');
    await add(image, 'idle');
    await qemuImg(['bitmap', '--disable', image, 'idle']);
    await using(image, async (node) => {
      await copyFile(image, crashed);
      assert.deepEqual(await flagsOf(crashed, 'auto'), ['auto'], 'opening alone changes nothing');
      await write(node, 0, 512);
      await copyFile(image, crashed);
    });
    assert.deepEqual(await flagsOf(crashed, 'auto'), ['in-use', 'auto']);
    assert.deepEqual(await dirtyRanges(directory, crashed, 'idle'), []);
    await using(crashed, async (node) => {
      const found = node.dirtyBitmaps.find('auto');
      assert.deepEqual([found?.inconsistent, found?.recording], [true, false]);
      assert.throws(() => node.dirtyBitmaps.get('auto'), /inconsistent and cannot be used/);
      await write(node, 1 * M, 512);
      await node.dirtyBitmaps.remove('auto');
    });
    assert.deepEqual(
      (await listedBitmaps(crashed)).map((b) => b.name),
      ['idle'],
    );
    await qemuImg(['check', '-r', 'leaks', crashed], [0, 3]);
    await assertClean(crashed);
  });

  test('come and go with what they take, also beside a backing file name', async (t) => {
    const directory = await scratchDirectory(t);
    await writeFile(join(directory, 'base.raw'), new Uint8Array(M));
    for (const clusterBytes of [512, 65536]) {
      const options = `cluster_size=${clusterBytes}`;
      const image = await create(directory, options, '4M', 'base.raw');
      const before = await qemuImgJson('info', [image]);
      await using(image, async (node) => {
        await node.dirtyBitmaps.add(persistent(node, 'new', 4096));
        await write(node, 8192, 1);
      });
      await assertClean(image);
      assert.deepEqual(await dirtyRanges(directory, image, 'new'), [[8192, 12288]]);
      await using(image, async (node) => {
        await node.dirtyBitmaps.add(persistent(node, 'other', 512));
        await node.dirtyBitmaps.remove('new');
        await write(node, 512, 512);
      });
      await assertClean(image);
      assert.deepEqual(await dirtyRanges(directory, image, 'other'), [[512, 1024]]);
      await using(image, (node) => node.dirtyBitmaps.remove('other'));
      await assertClean(image);
      const after = await qemuImgJson('info', [image]);
      const withoutSize = (info: unknown): unknown => ({ ...(info as object), 'actual-size': 0 });
      assert.deepEqual(withoutSize(after), withoutSize(before));
    }
  });

  test('follow the size of the image', async (t) => {
    const directory = await scratchDirectory(t);
    const image = await create(directory, 'cluster_size=4k', '3M');
    await add(image, 'auto', 512);
    await add(image, 'idle', 512);
    await qemuImg(['bitmap', '--disable', image, 'idle']);
    await using(image, async (node) => {
      await write(node, 3 * M - 512, 512);
      await node.resize(40 * M);
      await write(node, 40 * M - 512, 512);
    });
    await assertClean(image);
    assert.deepEqual(await dirtyRanges(directory, image, 'auto'), [
      [3 * M - 512, 3 * M],
      [40 * M - 512, 40 * M],
    ]);
    assert.deepEqual(await dirtyRanges(directory, image, 'idle'), []);
    await using(image, (node) => node.resize(2 * M));
    await assertClean(image);
    assert.deepEqual(await dirtyRanges(directory, image, 'auto'), []);
    await qemuImg(['resize', '-q', image, '50M']);
    await using(image, (node) => write(node, 50 * M - 1, 1));
    assert.deepEqual(await dirtyRanges(directory, image, 'auto'), [[50 * M - 512, 50 * M]]);
  });

  test('that are all dirty take no clusters, and QEMU reads them so', async (t) => {
    const directory = await scratchDirectory(t);
    // Its last cluster of bits is not full.
    const size = 40 * M + 512;
    const image = await create(directory, 'cluster_size=512', String(size));
    await add(image, 'all', 512);
    await using(image, (node) => node.writeZeroes(guestOffset(0), size, { unmap: true }));
    await assertClean(image);
    assert.deepEqual(await dirtyRanges(directory, image, 'all'), [[0, size]]);
    await qemuIo(image, ['write -P 1 0 512']);
    await using(image, async (node) => {
      assert.deepEqual(rangesOf(node.dirtyBitmaps.get('all').content), [[0, size]]);
    });
  });

  test('whose autoclear bit is clear are ignored, and adding one drops them', async (t) => {
    const directory = await scratchDirectory(t);
    const image = await create(directory, 'cluster_size=64k', '10M');
    await add(image, 'stale');
    const setAutoclear = async (byte: number): Promise<void> => {
      const file = await open(image, 'r+');
      await file.write(new Uint8Array([0, 0, 0, byte]), 0, 4, 92);
      await file.close();
    };
    await setAutoclear(0);
    await using(image, async (node) => {
      assert.equal(node.dirtyBitmaps.bitmaps.size, 0);
      await write(node, 0, 512);
    });
    assert.deepEqual(await listedBitmaps(image), []);
    await using(image, (node) => node.dirtyBitmaps.add(persistent(node, 'new', 65536)));
    assert.deepEqual(
      (await listedBitmaps(image)).map((b) => b.name),
      ['new'],
    );
    await qemuImg(['check', '-r', 'leaks', image], [0, 3]);
    await assertClean(image);
    // Bits that are not known are cleared by the first write, this one is kept.
    await setAutoclear(1 | (1 << 5));
    await using(image, (node) => write(node, 0, 512));
    assert.equal((await readFile(image))[95], 1);
    assert.deepEqual(await dirtyRanges(directory, image, 'new'), [[0, 65536]]);
  });

  test('are all dirty once a snapshot is applied, in its size', async (t) => {
    const directory = await scratchDirectory(t);
    const image = await create(directory, 'cluster_size=64k', '10M');
    await qemuImg(['snapshot', '-c', 'before', image]);
    await qemuImg(['resize', '-q', image, '20M']);
    await add(image, 'auto');
    await add(image, 'idle');
    await qemuImg(['bitmap', '--disable', image, 'idle']);
    await using(image, (node) => node.withSnapshots('apply', (snapshots) => snapshots.apply('1')));
    await assertClean(image);
    assert.deepEqual(await dirtyRanges(directory, image, 'auto'), [[0, 10 * M]]);
    assert.deepEqual(await dirtyRanges(directory, image, 'idle'), []);
  });

  test('cannot be stored in version 2, which has no bit to say that they are valid', async (t) => {
    const image = await create(await scratchDirectory(t), 'compat=0.10', '1M');
    await using(image, async (node) => {
      assert.throws(() => persistent(node, 'b', 65536), /version is 2/);
    });
    await assertClean(image);
  });
});
