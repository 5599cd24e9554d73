/** Writes that copy clusters: the bytes that a worker has read along are used, and are the right ones. */
import assert from 'node:assert/strict';
import { constants } from 'node:fs';
import { open, readFile, writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import { seededRandom } from '../../src/base/random.ts';
import { assertClean, qemuImg } from '../support/qemu-img.ts';
import { vdiskfs } from '../support/vdiskfs.ts';
import { placeOf, KERNEL as subject } from './suite/subject.ts';

const CLUSTER = 64 << 10;
const BLOCK = 4096;
const CLUSTERS = 400;

interface Statistics {
  readonly stats: { readonly rd_operations: number };
  readonly backing?: Statistics;
}

test('a worker reads the cluster that a write copies, below and of a snapshot, and not the engine', async (t) => {
  const place = await placeOf(t, subject);
  const [base, top] = [place.image('base.raw'), place.image('top.qcow2')];
  const random = seededRandom(7);
  const content = Buffer.from(Array.from({ length: CLUSTERS * BLOCK }, () => random.below(256)));
  const expected = Buffer.concat(Array.from({ length: CLUSTER / BLOCK }, () => content));
  await writeFile(base, expected);
  await qemuImg(['create', '-q', '-f', 'qcow2', '-b', base, '-F', 'raw', top]);
  const mounted = await place.mount();
  const readsBelow = async (): Promise<number> => {
    const { stdout } = await vdiskfs(['qmp', mounted.mountpoint, 'query-blockstats']);
    const devices = JSON.parse(stdout) as (Statistics & { readonly device: string })[];
    const found = devices.find(({ device }) => device === 'top');
    assert.ok(found?.backing !== undefined, stdout);
    return found.backing.stats.rd_operations;
  };
  const file = await open(mounted.path('top.raw'), constants.O_RDWR | constants.O_DIRECT);
  try {
    const write = async (cluster: number, fill: number): Promise<void> => {
      const at = cluster * CLUSTER + (cluster % (CLUSTER / BLOCK)) * BLOCK;
      const block = Buffer.alloc(BLOCK, fill);
      block.copy(expected, at);
      assert.equal((await file.write(block, 0, BLOCK, at)).bytesWritten, BLOCK);
    };
    // The first ones bring the image into shape, and its slice into the table.
    for (let cluster = 0; cluster < 20; cluster++) await write(cluster, 1);
    const before = await readsBelow();
    for (let cluster = 20; cluster < 220; cluster++) await write(cluster, 2);
    const reads = (await readsBelow()) - before;
    assert.ok(reads <= 20, `${reads} reads of the base for 200 writes`);
    await vdiskfs(['snapshot', mounted.path('top.raw'), '-c', 'first']);
    for (let cluster = 100; cluster < 300; cluster++) await write(cluster, 3);
  } finally {
    await file.close();
  }
  assert.ok((await readFile(mounted.path('top.raw'))).equals(expected));
  await mounted.unmount();
  await assertClean(top);
  const flat = place.image('expected.raw');
  await writeFile(flat, expected);
  await qemuImg(['compare', '-F', 'raw', top, flat]);
});
