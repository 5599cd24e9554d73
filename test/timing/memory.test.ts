/** What a mount takes: memory when idle, time until it is usable; and a huge image with little memory for its metadata. */
import assert from 'node:assert/strict';
import { copyFile, mkdir, open, readFile } from 'node:fs/promises';
import { getPriority, setPriority } from 'node:os';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { type Place, placeOf, KERNEL as subject } from '../mount/suite/subject.ts';
import { assertClean, qemuImg } from '../support/qemu-img.ts';
import { vdiskfs, vdiskfsJson } from '../support/vdiskfs.ts';

const MAX_IDLE_PSS_KIB = 150 << 10;
/**
 * What is promised for an idle machine is 0.5 s and 2 s, and the best of some tries counts. The large one holds with room to
 * spare. The small one is three processes that start, a good 0.4 s, so it is given half as much again: this machine may be busy.
 */
const MAX_SMALL_MOUNT_MS = 750;
const MAX_LARGE_MOUNT_MS = 2000;
const REHEARSED_MS = 10_000;
const TRIES = 5;
/** Before whatever else is running, where that is allowed. */
const FIRST_PRIORITY = -20;

const pidsOf = async (mountpoint: string): Promise<readonly [number, number]> => {
  const { pid } = (await vdiskfsJson(['status', mountpoint])) as { readonly pid: number };
  const status = await readFile(`/proc/${pid}/status`, 'utf8');
  return [pid, Number(/^PPid:\s+(?<parent>\d+)/m.exec(status)?.groups?.['parent'])];
};

/** Proportional set size, in KiB. */
const pssOf = async (pid: number): Promise<number> => {
  const text = await readFile(`/proc/${pid}/smaps_rollup`, 'utf8');
  return Number(/^Pss:\s+(?<kib>\d+)/m.exec(text)?.groups?.['kib']);
};

const sumOfPss = async (mountpoint: string): Promise<number> => {
  const [engine, supervisor] = await pidsOf(mountpoint);
  return (await pssOf(engine)) + (await pssOf(supervisor));
};

const makeImages = async (place: Place, count: number): Promise<void> => {
  await qemuImg(['create', '-q', '-f', 'qcow2', place.image('disk0.qcow2'), '1G']);
  for (let i = 1; i < count; i++)
    await copyFile(place.image('disk0.qcow2'), place.image(`disk${i}.qcow2`));
};

test('an idle mount of 100 images takes less than 150 MiB', async (t) => {
  const place = await placeOf(t, subject);
  await makeImages(place, 100);
  const mounted = await place.mount(['--log-level', 'debug']);
  for (
    const end = Date.now() + REHEARSED_MS;
    !/rehearsed [1-9]\d+ writes/.test(mounted.log);
    await sleep(50)
  )
    assert.ok(Date.now() < end, `its engine rehearses: ${mounted.log}`);
  const kib = await sumOfPss(mounted.mountpoint);
  t.diagnostic(`${Math.round(kib / 1024)} MiB`);
  assert.ok(kib < MAX_IDLE_PSS_KIB, `${kib} KiB`);
});

const withPriority = async <T>(run: () => Promise<T>): Promise<T> => {
  const before = getPriority();
  try {
    setPriority(FIRST_PRIORITY);
  } catch {
    // An ordinary user's is measured as it is.
  }
  try {
    return await run();
  } finally {
    setPriority(before);
  }
};

const mountMs = async (place: Place, limitMs: number): Promise<number> => {
  let best = Number.POSITIVE_INFINITY;
  for (let i = 0; i < TRIES && best > limitMs; i++) {
    const mounted = `${place.root}/mounted`;
    await mkdir(mounted, { recursive: true });
    const begun = performance.now();
    const done = await vdiskfs(['mount', place.images, mounted]);
    best = Math.min(best, performance.now() - begun);
    assert.equal(done.status, 0, done.stderr);
    assert.equal((await vdiskfs(['umount', mounted])).status, 0);
  }
  return best;
};

for (const { images, limitMs } of [
  { images: 3, limitMs: MAX_SMALL_MOUNT_MS },
  { images: 2000, limitMs: MAX_LARGE_MOUNT_MS },
]) {
  test(`a mount of ${images} images is usable within ${limitMs} ms`, async (t) => {
    const place = await placeOf(t, subject);
    await makeImages(place, images);
    const ms = await withPriority(() => mountMs(place, limitMs));
    t.diagnostic(`${Math.round(ms)} ms`);
    assert.ok(ms <= limitMs, `${Math.round(ms)} ms`);
  });
}

const PLACES = 600;
const TEBIBYTE = 2 ** 40;
const BLOCK_BYTES = 4096;
const CACHE_BYTES = 1 << 20;
/** Places between two looks at the memory. */
const LOOK_EVERY = 100;

/** Mapping metadata in memory: the translation table's and the engine's. */
const metadataBytes = async (mountpoint: string): Promise<number> => {
  const status = (await vdiskfsJson(['status', mountpoint])) as {
    readonly counters: { readonly tableBytes: number };
    readonly views: readonly { readonly metadataBytes: number }[];
  };
  return status.views.reduce((sum, v) => sum + v.metadataBytes, status.counters.tableBytes);
};

test('a 4 TiB image works with 1 MiB of cache, slices coming and going', async (t) => {
  const place = await placeOf(t, subject);
  const image = place.image('huge.qcow2');
  await qemuImg(['create', '-q', '-f', 'qcow2', image, '4T']);
  const mounted = await place.mount(['--l2-cache-size', String(CACHE_BYTES)]);
  const file = await open(mounted.path('huge.raw'), 'r+');
  const seen: number[] = [];
  const look = async (i: number): Promise<void> => {
    if (i % LOOK_EVERY === LOOK_EVERY - 1) seen.push(await metadataBytes(mounted.mountpoint));
  };
  const offsetOf = (i: number): number =>
    Math.floor((((i * 7919) % PLACES) * 4 * TEBIBYTE) / PLACES / BLOCK_BYTES) * BLOCK_BYTES;
  try {
    for (let i = 0; i < PLACES; i++) {
      const block = Buffer.alloc(BLOCK_BYTES, `block ${i} `);
      await file.write(block, 0, BLOCK_BYTES, offsetOf(i));
      await look(i);
    }
    await file.sync();
    await file.close();
  } catch (error) {
    await file.close();
    throw error;
  }
  // Read past the kernel's own pages.
  const again = await open(mounted.path('huge.raw'), 0o40000);
  try {
    const aligned = Buffer.alloc(2 * BLOCK_BYTES);
    for (let i = 0; i < PLACES; i++) {
      const { bytesRead } = await again.read(aligned, 0, BLOCK_BYTES, offsetOf(i));
      assert.equal(bytesRead, BLOCK_BYTES);
      const expected = Buffer.alloc(BLOCK_BYTES, `block ${i} `);
      assert.deepEqual(aligned.subarray(0, BLOCK_BYTES), expected, `block ${i}`);
      await look(i);
    }
  } finally {
    await again.close();
  }
  // The slices of all places are more than twice as much.
  const most = Math.max(...seen);
  t.diagnostic(`${most >> 10} KiB of metadata at most`);
  assert.ok(most > CACHE_BYTES / 4 && most <= CACHE_BYTES, `${seen.join(', ')} bytes`);
  await mounted.unmount();
  await assertClean(image);
});
