/** An add-cow image in the mount: whose bytes go where, who serves them, and what is left when all is in the image file. */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { type FileHandle, open, readdir, readFile, truncate, writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import { guestOf, readAddCow, writeAddCow } from '../support/add-cow-file.ts';
import { dataExtents, fallocateTool, tool } from '../support/file-tools.ts';
import { eventually } from '../support/mounted.ts';
import { vdiskfsJson } from '../support/vdiskfs.ts';
import { KERNEL, type Place, placeOf } from './suite/subject.ts';

const CLUSTER = 65_536;
const BYTES = 4 << 20;
const BASE_BYTES = BYTES - 100_000;

interface Status {
  readonly pid: number;
  readonly counters: { readonly hits: number; readonly faults: number };
}

const statusOf = async (mountpoint: string): Promise<Status> =>
  (await vdiskfsJson(['status', mountpoint])) as Status;

const imagePlace = async (
  t: Parameters<typeof placeOf>[0],
): Promise<{ place: Place; base: Buffer; judge: (expected: Buffer) => Promise<void> }> => {
  const place = await placeOf(t, KERNEL);
  const base = Buffer.concat([randomBytes(BASE_BYTES), Buffer.alloc(BYTES - BASE_BYTES)]);
  await writeFile(place.image('base.img'), base.subarray(0, BASE_BYTES));
  await writeFile(place.image('disk.raw'), '');
  await truncate(place.image('disk.raw'), BYTES);
  await writeAddCow(place.image('disk.add-cow'), {
    clusterBytes: CLUSTER,
    backing: { name: 'base.img', format: 'raw' },
    image: { name: 'disk.raw', format: 'raw' },
    isAllAllocated: false,
    bits: new Array<boolean>(BYTES / CLUSTER).fill(false),
  });
  const judge = async (expected: Buffer): Promise<void> => {
    const file = await readAddCow(place.image('disk.add-cow'), BYTES);
    const raw = await readFile(place.image('disk.raw'));
    assert.ok(Buffer.from(guestOf(file, raw, base)).equals(expected), 'what the files hold');
  };
  return { place, base, judge };
};

const writeAt = async (file: FileHandle, offset: number, bytes: Buffer): Promise<void> => {
  await file.write(bytes, 0, bytes.length, offset);
};

test('a guest reads through, writes beside, and finds it again after the engine was killed', async (t) => {
  const { place, base, judge } = await imagePlace(t);
  const mounted = await place.mount();
  assert.deepEqual(await readdir(mounted.mountpoint), ['base.raw', 'disk.raw']);
  const path = mounted.path('disk.raw');
  assert.ok((await readFile(path)).equals(base));
  const expected = Buffer.from(base);
  const file = await open(path, 'r+');
  try {
    for (const [offset, length] of [
      [1000, 5000],
      [CLUSTER * 3 - 10, CLUSTER + 20],
      [BYTES - 70_001, 70_001],
    ] as const) {
      const bytes = randomBytes(length);
      bytes.copy(expected, offset);
      await writeAt(file, offset, bytes);
    }
    await tool('sync', ['-d', path]);
    const { pid } = await statusOf(mounted.mountpoint);
    const late = randomBytes(3000);
    late.copy(expected, CLUSTER * 20 + 5);
    await writeAt(file, CLUSTER * 20 + 5, late);
    process.kill(pid, 'SIGKILL');
    await eventually('another engine serves', async () => {
      const now = await statusOf(mounted.mountpoint).catch(() => null);
      return now !== null && now.pid !== pid;
    });
    const found = Buffer.alloc(BYTES);
    await file.read(found, 0, BYTES, 0);
    assert.ok(found.equals(expected));
  } finally {
    await file.close();
  }
  await mounted.unmount();
  await judge(expected);
});

test('discarded ranges are holes of the image file, and read as zeros also over the backing file', async (t) => {
  const { place, base, judge } = await imagePlace(t);
  const mounted = await place.mount();
  const path = mounted.path('disk.raw');
  const file = await open(path, 'r+');
  await writeAt(file, 0, randomBytes(1 << 20));
  await file.sync();
  await file.close();
  await fallocateTool(path, ['-p'], { offset: 0, lengthBytes: 2 << 20 });
  const expected = Buffer.from(base).fill(0, 0, 2 << 20);
  assert.ok((await readFile(path)).equals(expected));
  assert.equal((await dataExtents(path))[0]?.[0], 2 << 20, 'a hole in the view');
  await mounted.unmount();
  await judge(expected);
  assert.deepEqual(await dataExtents(place.image('disk.raw')), [], 'and in the image file');
});

test('workers serve what is mapped; a full image is one page, and needs neither other file', async (t) => {
  const { place, judge } = await imagePlace(t);
  const mounted = await place.mount();
  const path = mounted.path('disk.raw');
  const direct = async (args: readonly string[]): Promise<number> => {
    const before = await statusOf(mounted.mountpoint);
    await tool('dd', [...args, 'bs=4k', 'conv=notrunc', 'status=none']);
    const after = await statusOf(mounted.mountpoint);
    return after.counters.hits - before.counters.hits;
  };
  // The first reads of a slice fault, the rest of its pages are known then.
  const reads = BYTES / 4096;
  assert.ok((await direct([`if=${path}`, 'of=/dev/null', 'iflag=direct'])) > reads / 2);
  const full = randomBytes(BYTES);
  await writeFile(place.image('full.bin'), full);
  await tool('dd', [
    `if=${place.image('full.bin')}`,
    `of=${path}`,
    'bs=1M',
    'conv=notrunc,fsync',
    'status=none',
  ]);
  assert.equal((await readAddCow(place.image('disk.add-cow'), BYTES)).isAllAllocated, true);
  const written = await direct([`if=${place.image('full.bin')}`, `of=${path}`, 'oflag=direct']);
  assert.ok(written > reads / 2, `${written} of ${reads} writes by workers`);
  await mounted.unmount();
  await judge(full);
  assert.ok((await readFile(place.image('disk.raw'))).equals(full), 'the image file alone');
  await tool('rm', [place.image('base.img')]);
  const alone = await place.mount(['--passthrough']);
  const file = await open(alone.path('disk.raw'), 'r+');
  try {
    const before = await statusOf(alone.mountpoint);
    const found = Buffer.alloc(BYTES);
    for (let at = 0; at < BYTES; at += CLUSTER) await file.read(found, at, CLUSTER, at);
    assert.ok(found.equals(full));
    const { counters } = await statusOf(alone.mountpoint);
    const asked = counters.hits + counters.faults - before.counters.hits - before.counters.faults;
    assert.ok(asked < 30, `${asked} requests reach us: the kernel reads by itself`);
  } finally {
    await file.close();
  }
  await alone.unmount();
});
