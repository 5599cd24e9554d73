/** Dirty bitmaps of an image that is mounted: exact, although workers write in place, and in_use when it was not closed. */
import assert from 'node:assert/strict';
import { open, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { DirtyBitmap } from '../../src/block/dirty-bitmap.ts';
import { tool } from '../support/file-tools.ts';
import { dirtyRanges, listedBitmaps } from '../support/qemu-bitmaps.ts';
import { assertClean, qemuImg, qemuIo } from '../support/qemu-img.ts';
import { vdiskfs, vdiskfsJson } from '../support/vdiskfs.ts';
import { type Place, placeOf, KERNEL as subject } from './suite/subject.ts';

const BYTES = 32 << 20;
const GRANULE = 4096;
const SECTOR = 512;
const OLD_BYTE = 0x11;
const WRITES = 400;

/** All of it allocated, so that workers may write in place; its bitmaps are clean. */
const makeImage = async (place: Place): Promise<string> => {
  const image = place.image('disk.qcow2');
  await qemuImg(['create', '-q', '-f', 'qcow2', image, String(BYTES)]);
  await qemuIo(image, [`write -P ${OLD_BYTE} 0 ${BYTES}`]);
  await qemuImg(['bitmap', '--add', '-g', String(GRANULE), image, 'fine']);
  await qemuImg(['bitmap', '--add', '-g', '1M', image, 'coarse']);
  return image;
};

/** The same writes each time. */
const fio = (path: string, blocks: string): Promise<string> =>
  tool(
    'fio',
    [
      '--name=x',
      `--filename=${path}`,
      '--rw=randwrite',
      `--bsrange=${blocks}`,
      '--direct=1',
      '--ioengine=libaio',
      '--iodepth=8',
      `--size=${BYTES}`,
      `--number_ios=${WRITES}`,
      '--randseed=7',
      '--buffer_pattern=0xab',
    ],
    60_000,
  );

/** Granules of which some sector is not what it was. */
const writtenRanges = async (place: Place, image: string): Promise<[number, number][]> => {
  const flat = join(place.root, 'flat.raw');
  await qemuImg(['convert', '-O', 'raw', image, flat]);
  const content = await readFile(flat);
  const written = new DirtyBitmap({ lengthBytes: BYTES, granularityBytes: GRANULE });
  for (let at = 0; at < BYTES; at += SECTOR) if (content[at] !== OLD_BYTE) written.mark(at, SECTOR);
  return [...written.dirtyRanges()].map((r) => [r.start, r.start + r.lengthBytes]);
};

const countersOf = async (mountpoint: string): Promise<{ hits: number; faults: number }> =>
  ((await vdiskfsJson(['status', mountpoint])) as { counters: { hits: number; faults: number } })
    .counters;

test('a bitmap is what fio wrote, and what is dirty already is written by the workers alone', async (t) => {
  const place = await placeOf(t, subject);
  const image = await makeImage(place);
  const mounted = await place.mount();
  const path = mounted.path('disk.raw');
  // It would be closed when it is idle.
  const handle = await open(path, 'r');
  const start = await countersOf(mounted.mountpoint);
  await fio(path, '512-16k');
  const first = await countersOf(mounted.mountpoint);
  await fio(path, '512-16k');
  const second = await countersOf(mounted.mountpoint);
  const flags = (await listedBitmaps(image, ['-U'])).map((b) => b.flags);
  assert.deepEqual(flags, [
    ['in-use', 'auto'],
    ['in-use', 'auto'],
  ]);
  const faulted = first.faults - start.faults;
  const hits = second.hits - first.hits;
  t.diagnostic(`${faulted} faults at first, then ${hits} hits and ${second.faults - first.faults}`);
  assert.ok(faulted > WRITES / 2, `${faulted} faults of ${WRITES} first writes`);
  assert.ok(hits > WRITES * 0.9, `${hits} hits of ${WRITES} second writes`);
  await handle.close();
  await mounted.unmount();
  await assertClean(image);
  const written = await writtenRanges(place, image);
  assert.ok(written.length > WRITES / 4, `${written.length} ranges were written`);
  assert.deepEqual(await dirtyRanges(place.root, image, 'fine'), written);
  const coarse = new DirtyBitmap({ lengthBytes: BYTES, granularityBytes: 1 << 20 });
  for (const [from, to] of written) coarse.mark(from, to - from);
  assert.deepEqual(
    await dirtyRanges(place.root, image, 'coarse'),
    [...coarse.dirtyRanges()].map((r) => [r.start, r.start + r.lengthBytes]),
  );
});

test('an engine that was killed leaves them inconsistent, and the mount goes on', async (t) => {
  const place = await placeOf(t, subject);
  const image = await makeImage(place);
  const mounted = await place.mount();
  const path = mounted.path('disk.raw');
  const write = (): Promise<string> =>
    tool('dd', ['if=/dev/zero', `of=${path}`, 'bs=64k', 'count=16', 'conv=notrunc,fsync']);
  await write();
  const { pid } = (await vdiskfsJson(['status', mounted.mountpoint])) as { pid: number };
  process.kill(pid, 'SIGKILL');
  await write();
  await mounted.unmount();
  await assertClean(image);
  const flags = (await listedBitmaps(image)).map((b) => b.flags);
  assert.deepEqual(flags, [
    ['in-use', 'auto'],
    ['in-use', 'auto'],
  ]);
});

test('bitmaps go along when an image is handed to another host and back', async (t) => {
  const place = await placeOf(t, subject);
  const image = await makeImage(place);
  const mounted = await place.mount();
  const view = mounted.path('disk.raw');
  const write = async (seek: number): Promise<void> => {
    const where = [`of=${view}`, 'bs=4k', `seek=${seek}`, 'count=1'];
    await tool('dd', ['if=/dev/urandom', ...where, 'conv=notrunc', 'oflag=direct']);
  };
  const change = async (command: 'deactivate' | 'activate'): Promise<void> => {
    const done = await vdiskfs([command, view]);
    assert.equal(done.status, 0, done.stderr);
  };
  const flagsOf = async (...options: string[]): Promise<readonly (readonly string[])[]> =>
    (await listedBitmaps(image, options)).map(({ flags }) => flags);
  const granules = (...places: number[]): [number, number][] =>
    places.map((granule) => [granule * GRANULE, (granule + 1) * GRANULE]);
  await write(256);
  assert.ok((await flagsOf('-U')).every((flags) => flags.includes('in-use')));
  await change('deactivate');
  assert.ok((await flagsOf()).every((flags) => !flags.includes('in-use')));
  assert.deepEqual(await dirtyRanges(place.root, image, 'fine'), granules(256));
  await qemuIo(image, ['write -P 5 2M 4k']);
  await change('activate');
  await write(768);
  await mounted.unmount();
  assert.deepEqual(await dirtyRanges(place.root, image, 'fine'), granules(256, 512, 768));
  await assertClean(image);
});
