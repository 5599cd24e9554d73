/** Dirty bitmaps over the control socket: what they record, and what QEMU finds of them in the image afterwards. */
import assert from 'node:assert/strict';
import { open } from 'node:fs/promises';
import { test } from 'node:test';
import { dirtyRanges, listedBitmaps } from '../support/qemu-bitmaps.ts';
import { assertClean } from '../support/qemu-img.ts';
import type { QmpConnection } from '../support/qmp.ts';
import { vdiskfs } from '../support/vdiskfs.ts';
import { controlMount } from './control-mount.ts';

const KIB = 1024;

interface BitmapInfo {
  readonly name: string;
  readonly count: number;
  readonly granularity: number;
  readonly recording: boolean;
  readonly busy: boolean;
  readonly persistent: boolean;
}

const bitmapsOf = async (c: QmpConnection): Promise<readonly BitmapInfo[]> => {
  const all = (await c.execute('query-block')) as {
    device: string;
    inserted: { 'dirty-bitmaps'?: BitmapInfo[] };
  }[];
  return all.find((b) => b.device === 'vm')?.inserted['dirty-bitmaps'] ?? [];
};

const countsOf = async (c: QmpConnection): Promise<Record<string, number>> =>
  Object.fromEntries((await bitmapsOf(c)).map((b) => [b.name, b.count / KIB]));

const write = async (path: string, offset: number, length: number): Promise<void> => {
  const file = await open(path, 'r+');
  try {
    await file.write(Buffer.alloc(length, 0xcc), 0, length, offset);
    await file.sync();
  } finally {
    await file.close();
  }
};

test('bitmaps are added, cleared, disabled, enabled, merged and removed while a guest writes', async (t) => {
  const m = await controlMount(t, { sizeMib: 8 });
  const c = await m.qmp();
  const on = (verb: string, name: string, more: object = {}): Promise<unknown> =>
    c.execute(`block-dirty-bitmap-${verb}`, { node: 'vm', name, ...more });
  await on('add', 'kept', { persistent: true, granularity: 4096 });
  await on('add', 'passing');
  await on('add', 'off', { disabled: true, granularity: 512 });
  assert.deepEqual(await bitmapsOf(c), [
    { name: 'kept', count: 0, granularity: 4096, recording: true, busy: false, persistent: true },
    {
      name: 'passing',
      count: 0,
      granularity: 65536,
      recording: true,
      busy: false,
      persistent: false,
    },
    { name: 'off', count: 0, granularity: 512, recording: false, busy: false, persistent: false },
  ]);
  await write(m.view, 1025 * KIB, 10);
  assert.deepEqual(await countsOf(c), { kept: 4, passing: 64, off: 0 });
  await on('disable', 'passing');
  await on('enable', 'off');
  await on('clear', 'kept');
  // The kernel writes whole pages.
  await write(m.view, 4096 * KIB, 512);
  assert.deepEqual(await countsOf(c), { kept: 4, passing: 64, off: 4 });
  // The same page again, which the workers could write alone: it was cleared.
  await on('clear', 'off');
  await write(m.view, 4096 * KIB, 512);
  assert.deepEqual(await countsOf(c), { kept: 4, passing: 64, off: 4 });
  await c.execute('block-dirty-bitmap-merge', {
    node: 'vm',
    target: 'kept',
    bitmaps: ['off', { node: 'vm', name: 'passing' }],
  });
  assert.deepEqual(await countsOf(c), { kept: 68, passing: 64, off: 4 });
  await on('remove', 'off');
  assert.deepEqual(Object.keys(await countsOf(c)), ['kept', 'passing']);
  assert.equal((await vdiskfs(['umount', m.mountpoint])).status, 0);
  await assertClean(m.overlay);
  assert.deepEqual(
    (await listedBitmaps(m.overlay)).map((b) => [b.name, b.flags]),
    [['kept', ['auto']]],
  );
  assert.deepEqual(await dirtyRanges(m.root, m.overlay, 'kept'), [
    [1024 * KIB, 1088 * KIB],
    [4096 * KIB, 4100 * KIB],
  ]);
});

test('what cannot be done with a bitmap is refused, and nothing is changed', async (t) => {
  const m = await controlMount(t, { sizeMib: 8 });
  const c = await m.qmp();
  const node = 'vm';
  await c.execute('block-dirty-bitmap-add', { node, name: 'b' });
  const refused = async (verb: string, given: object, what: RegExp): Promise<void> => {
    await assert.rejects(c.execute(`block-dirty-bitmap-${verb}`, given), what);
  };
  await refused('add', { node, name: 'b' }, /GenericError: .*Bitmap already exists: b/);
  await refused('add', { node, name: '' }, /Bitmap name cannot be empty/);
  await refused('add', { node, name: 'c', granularity: 3000 }, /power of 2/);
  await refused('add', { node, name: 'c', size: 1 }, /Parameter 'size' is unexpected/);
  await refused('add', { node: 'none', name: 'c' }, /Cannot find device='none'/);
  await refused('clear', { node, name: 'c' }, /Dirty bitmap 'c' not found/);
  const merging = { node, target: 'b', bitmaps: ['c'] };
  await refused('merge', merging, /Dirty bitmap 'c' not found/);
  await refused('merge', { ...merging, bitmaps: 'b' }, /expected: array/);
  await refused('merge', { ...merging, bitmaps: [{ node }] }, /expected: array/);
  const base = { node: 'base', name: 'p', persistent: true };
  await refused('add', base, /read-only/);
  assert.deepEqual(Object.keys(await countsOf(c)), ['b']);
});

test('vdiskfs bitmap works on a view while it is used; with the image itself it names the view', async (t) => {
  const m = await controlMount(t);
  const bitmap = async (...args: readonly string[]): Promise<void> => {
    const done = await vdiskfs(['bitmap', ...args]);
    assert.equal(done.status, 0, done.stderr);
  };
  const refused = async (reason: RegExp, ...args: readonly string[]): Promise<void> => {
    const done = await vdiskfs(['bitmap', ...args]);
    assert.equal(done.status, 1, done.stdout);
    assert.match(done.stderr, reason);
  };
  // As long as it is open, its image is not closed.
  const guest = await open(m.view, 'r+');
  await bitmap('--add', '-g', '4k', m.view, 'day1');
  await write(m.view, 64 * KIB, 8 * KIB);
  await bitmap('--add', '-g', '4k', '--disable', m.view, 'all');
  await write(m.view, 128 * KIB, 4 * KIB);
  await bitmap('--merge', 'day1', m.view, 'all');
  await bitmap('--clear', m.view, 'day1');
  await write(m.view, 256 * KIB, 4 * KIB);
  await bitmap('--add', m.view, 'gone');
  await bitmap('--remove', m.view, 'gone');
  await bitmap('--merge', 'day1', '-b', m.view, m.view, 'all');
  await refused(/vm\.raw: .*Bitmap already exists: day1/, '--add', m.view, 'day1');
  await refused(/'nothing'/, '--clear', m.view, 'nothing');
  await refused(/is no view of a vdiskfs mount/, '--merge', 'x', '-b', m.root, m.view, 'all');
  await refused(/use its view .*vm\.raw/, '--clear', m.overlay, 'day1');
  await guest.close();
  assert.equal((await vdiskfs(['umount', m.mountpoint])).status, 0);
  const listed = (await listedBitmaps(m.overlay)).map((b) => [b.name, b.granularity, b.flags]);
  assert.deepEqual(listed.sort(), [
    ['all', 4 * KIB, []],
    ['day1', 4 * KIB, ['auto']],
  ]);
  const ranges = (name: string) => dirtyRanges(m.root, m.overlay, name);
  assert.deepEqual(await ranges('day1'), [[256 * KIB, 260 * KIB]]);
  assert.deepEqual(await ranges('all'), [
    [64 * KIB, 72 * KIB],
    [128 * KIB, 132 * KIB],
    [256 * KIB, 260 * KIB],
  ]);
  await assertClean(m.overlay);
});
