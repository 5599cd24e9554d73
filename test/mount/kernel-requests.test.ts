/** Requests that only the kernel backend answers, and what its data plane does. */
import assert from 'node:assert/strict';
import { open, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { tool } from '../support/file-tools.ts';
import { assertClean, qemuImg } from '../support/qemu-img.ts';
import { vdiskfsJson } from '../support/vdiskfs.ts';
import { type Place, placeOf, KERNEL as subject } from './suite/subject.ts';

const BYTES = 4 << 20;

const twoImages = async (place: Place): Promise<Uint8Array> => {
  const content = new Uint8Array(BYTES);
  for (let i = 0; i < BYTES; i++) content[i] = i >= 1 << 20 && i < 2 << 20 ? 0 : 1 + (i % 254);
  await writeFile(place.image('from.raw'), content);
  await qemuImg(['create', '-q', '-f', 'qcow2', place.image('to.qcow2'), String(BYTES)]);
  return content;
};

test('copy_file_range copies between views, and zeros take no space', async (t) => {
  const place = await placeOf(t, subject);
  const content = await twoImages(place);
  const mounted = await place.mount();
  const from = mounted.path('from.raw');
  const to = mounted.path('to.raw');
  await tool('xfs_io', ['-c', `copy_range -s 0 -d 0 -l ${BYTES} ${from}`, '-c', 'fsync', to]);
  assert.ok(Buffer.compare(await readFile(to), content) === 0);
  await mounted.unmount();
  await assertClean(place.image('to.qcow2'));
  const map = JSON.parse(await qemuImg(['map', '--output=json', place.image('to.qcow2')])) as {
    data: boolean;
    length: number;
  }[];
  const stored = map.filter((m) => m.data).reduce((sum, m) => sum + m.length, 0);
  assert.equal(stored, BYTES - (1 << 20));
});

interface Counters {
  readonly counters: { readonly requests: number; readonly hits: number; readonly faults: number };
}

const directReads = async (path: string): Promise<void> => {
  await tool('dd', [`if=${path}`, 'of=/dev/null', 'bs=64k', 'iflag=direct', 'status=none']);
};

test('the workers answer mapped ranges alone, down the backing chain too', async (t) => {
  const place = await placeOf(t, subject);
  await twoImages(place);
  await qemuImg([
    'create',
    '-q',
    '-f',
    'qcow2',
    '-b',
    'from.raw',
    '-F',
    'raw',
    place.image('over.qcow2'),
  ]);
  const mounted = await place.mount();
  const over = mounted.path('over.raw');
  await tool('dd', [
    'if=/dev/zero',
    `of=${over}`,
    'bs=64k',
    'count=8',
    'conv=notrunc,fsync',
    'status=none',
  ]);
  await directReads(over);
  const before = ((await vdiskfsJson(['status', mounted.mountpoint])) as Counters).counters;
  await directReads(over);
  const after = ((await vdiskfsJson(['status', mounted.mountpoint])) as Counters).counters;
  const reads = BYTES / (64 << 10);
  assert.ok(
    after.hits - before.hits >= reads,
    `${after.hits - before.hits} hits of ${reads} reads`,
  );
  await mounted.unmount();
  await assertClean(place.image('over.qcow2'));
});

test('what a worker may write in place is in the image, and a discard takes it away from the worker', async (t) => {
  const place = await placeOf(t, subject);
  const image = place.image('disk.qcow2');
  await qemuImg(['create', '-q', '-f', 'qcow2', image, '4M']);
  const mounted = await place.mount();
  const path = mounted.path('disk.raw');
  const write = (value: number): Promise<string> =>
    tool('xfs_io', ['-d', '-c', `pwrite -q -S ${value} 0 1m`, path]);
  for (const value of [1, 2, 3]) await write(value);
  await tool('xfs_io', ['-c', 'fpunch 0 512k', path]);
  const file = await open(path, 'r');
  const bytes = new Uint8Array(1 << 20);
  await file.read(bytes, 0, bytes.length, 0);
  await file.close();
  assert.ok(bytes.subarray(0, 512 << 10).every((b) => b === 0));
  assert.ok(bytes.subarray(512 << 10).every((b) => b === 3));
  await write(4);
  await mounted.unmount();
  await assertClean(image);
  const flat = join(place.root, 'flat.raw');
  await qemuImg(['convert', '-O', 'raw', image, flat]);
  assert.ok((await readFile(flat)).subarray(0, 1 << 20).every((b) => b === 4));
});
