/**
 * FSYNCs that workers answer, seen from the disk: the images lie on a file system of a loop device, and what the device's file has
 * when an fsync has returned is what a power cut would leave.
 */
import assert from 'node:assert/strict';
import { mkdir, open, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { seededRandom } from '../../src/base/random.ts';
import { fallocateTool, tool } from '../support/file-tools.ts';
import { loopFileSystem } from '../support/loop-file-system.ts';
import type { Mounted } from '../support/mounted.ts';
import { assertClean, qemuImg } from '../support/qemu-img.ts';
import { SEED } from '../support/run-parameters.ts';
import { vdiskfsJson } from '../support/vdiskfs.ts';
import { pattern } from './suite/bytes.ts';
import { type Place, placeOf, KERNEL as subject } from './suite/subject.ts';

const DEVICE_BYTES = 96 << 20;
const DISK_BYTES = 8 << 20;
const BLOCK = 4096;
const FSYNCS = 5;

interface Disk {
  readonly place: Place;
  /** Where the images lie, as a power cut now would leave them. */
  readonly cut: () => Promise<string>;
}

const diskOf = async (place: Place): Promise<Disk> => {
  const { cut, close } = await loopFileSystem('ext4', place.root, DEVICE_BYTES, place.images);
  place.cleanup.after(close);
  return { place, cut };
};

const hitsOf = async ({ mountpoint }: Mounted): Promise<number> => {
  const status = (await vdiskfsJson(['status', mountpoint])) as {
    readonly counters: { readonly hits: number };
  };
  return status.counters.hits;
};

/** How many of some fsyncs of a view without writes workers have answered. */
const answeredByWorkers = async (mounted: Mounted, view: string): Promise<number> => {
  const file = await open(mounted.path(view), 'r+');
  try {
    // The data plane learns of a view at its first fault.
    await file.read(Buffer.alloc(BLOCK), 0, BLOCK, 0);
    await file.sync();
    const before = await hitsOf(mounted);
    for (let i = 0; i < FSYNCS; i++) await file.sync();
    return (await hitsOf(mounted)) - before;
  } finally {
    await file.close();
  }
};

const make = async (place: Place, format: 'raw' | 'qcow2'): Promise<string> => {
  const name = `disk.${format}`;
  const content = join(place.root, 'content');
  await writeFile(content, pattern(DISK_BYTES));
  await qemuImg(['convert', '-f', 'raw', '-O', format, content, place.image(name)]);
  await tool('sync', []);
  return name;
};

for (const format of ['raw', 'qcow2'] as const) {
  test(`${format}: what workers wrote and synced is on the disk, with --cache unsafe it is not`, async (t) => {
    const { place, cut } = await diskOf(await placeOf(t, subject));
    const name = await make(place, format);
    const written = pattern(BLOCK, 77);
    for (const cache of ['writeback', 'unsafe'] as const) {
      const mounted = await place.mount(
        ['--cache', cache, '--format', format],
        [`disk=${place.image(name)}`],
      );
      const isSynced = cache === 'writeback';
      assert.equal(await answeredByWorkers(mounted, 'disk.raw'), isSynced ? FSYNCS : 0);
      const offset = (isSynced ? 3 : 5) * BLOCK;
      const view = await open(mounted.path('disk.raw'), 'r+');
      // The page is translated, so that the write is a worker's.
      await view.write(written, 0, BLOCK, offset);
      await view.sync();
      const last = pattern(BLOCK, isSynced ? 78 : 79);
      const before = await hitsOf(mounted);
      await view.write(last, 0, BLOCK, offset);
      await view.sync();
      assert.ok((await hitsOf(mounted)) >= before + (isSynced ? 2 : 1));
      const image = join(await cut(), name);
      const raw = join(place.root, 'raw');
      await qemuImg(['convert', '-f', format, '-O', 'raw', image, raw]);
      const found = (await readFile(raw)).subarray(offset, offset + BLOCK);
      assert.equal(found.equals(last), isSynced, `${cache}: what the disk has`);
      await view.close();
      await mounted.unmount();
    }
  });
}

test(`qcow2: each fsync brings all that was answered to the disk, whoever answers it (seed ${SEED})`, {
  timeout: 300_000,
}, async (t) => {
  const { place, cut } = await diskOf(await placeOf(t, subject));
  const random = seededRandom(SEED);
  await mkdir(place.images, { recursive: true });
  await qemuImg(['create', '-q', '-f', 'qcow2', place.image('disk.qcow2'), String(DISK_BYTES)]);
  const mounted = await place.mount();
  const path = mounted.path('disk.raw');
  const model = Buffer.alloc(DISK_BYTES);
  const view = await open(path, 'r+');
  const before = await hitsOf(mounted);
  for (let round = 0; round < 24; round++) {
    for (let step = random.below(6); step > 0; step--) {
      const offset = random.below(DISK_BYTES / BLOCK - 4) * BLOCK;
      const length = (1 + random.below(4)) * BLOCK;
      if (random.below(4) === 0) {
        await fallocateTool(path, ['-p'], { offset, lengthBytes: length });
        model.fill(0, offset, offset + length);
      } else {
        const bytes = pattern(length, round * 7 + step);
        await view.write(bytes, 0, length, offset);
        bytes.copy(model, offset);
      }
      if (random.below(3) === 0) await view.sync();
    }
    await view.sync();
    if (round % 2 === 0) await view.sync();
    const image = join(await cut(), 'disk.qcow2');
    const raw = join(place.root, 'raw');
    await qemuImg(['convert', '-f', 'qcow2', '-O', 'raw', image, raw]);
    assert.ok((await readFile(raw)).equals(model), `round ${round}`);
  }
  assert.ok((await hitsOf(mounted)) > before + 12, 'some were answered by workers');
  await view.close();
  await mounted.unmount();
  await assertClean(place.image('disk.qcow2'));
});
