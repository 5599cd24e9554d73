/** `vdiskfs bitmap` and `vdiskfs convert --bitmaps` leave what `qemu-img` leaves. */
import assert from 'node:assert/strict';
import { copyFile, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { guestOffset } from '../../src/base/units.ts';
import { vdiskfs } from '../support/loaded-vdiskfs.ts';
import { dirtyRanges, listedBitmaps } from '../support/qemu-bitmaps.ts';
import { assertClean, assertSameContent, qemuImg, qemuIo } from '../support/qemu-img.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';

/** Two bitmaps of other granularities, with different bits; one that records no more. */
const makeImage = async (directory: string): Promise<string> => {
  const image = join(directory, 'made.qcow2');
  await qemuImg(['create', '-q', '-f', 'qcow2', image, '20M']);
  await qemuImg(['bitmap', '--add', '-g', '4k', image, 'fine']);
  await qemuIo(image, ['write -P 1 100k 30k', 'write -P 2 5M 200k']);
  await qemuImg(['bitmap', '--add', image, 'coarse']);
  await qemuIo(image, ['write -P 3 19M 4k']);
  await qemuImg(['bitmap', '--disable', image, 'fine']);
  await qemuIo(image, ['write -P 4 12M 4k']);
  return image;
};

/** Everything that QEMU says of an image's bitmaps. */
const bitmapsOf = async (directory: string, image: string): Promise<unknown> => {
  const all: unknown[] = [];
  for (const bitmap of await listedBitmaps(image)) {
    const isInUse = bitmap.flags.includes('in-use');
    all.push([bitmap, isInUse ? null : await dirtyRanges(directory, image, bitmap.name)]);
  }
  return all;
};

const succeed = async (args: readonly string[]): Promise<void> => {
  const done = await vdiskfs(args);
  assert.equal(done.status, 0, done.stderr);
};

const SEQUENCES: readonly (readonly string[])[] = [
  ['--add', '-g', '2M', '--merge', 'fine', '--merge', 'coarse', '--disable', 'new'],
  ['--remove', 'fine'],
  ['--clear', 'coarse'],
  ['--enable', 'fine'],
  ['--disable', 'coarse'],
  ['--merge', 'coarse', 'fine'],
];

test('each action leaves the bitmaps that qemu-img leaves, and a clean image', async (t) => {
  const directory = await scratchDirectory(t);
  const made = await makeImage(directory);
  const ours = join(directory, 'ours.qcow2');
  const theirs = join(directory, 'theirs.qcow2');
  for (const sequence of SEQUENCES) {
    const options = sequence.slice(0, -1);
    const name = sequence.at(-1) ?? '';
    await copyFile(made, ours);
    await copyFile(made, theirs);
    await succeed(['bitmap', ...options, ours, name]);
    await qemuImg(['bitmap', ...options, theirs, name]);
    const found = await bitmapsOf(directory, ours);
    assert.deepEqual(found, await bitmapsOf(directory, theirs), sequence.join(' '));
    await assertClean(ours);
    await assertSameContent(ours, theirs);
  }
  await copyFile(made, ours);
  await copyFile(made, theirs);
  for (const image of [ours, theirs]) await qemuImg(['bitmap', '--clear', image, 'fine']);
  await succeed(['bitmap', '--merge', 'fine', '-b', made, '-F', 'qcow2', ours, 'fine']);
  await qemuImg(['bitmap', '--merge', 'fine', '-b', made, '-F', 'qcow2', theirs, 'fine']);
  assert.deepEqual(await bitmapsOf(directory, ours), await bitmapsOf(directory, theirs));
});

test('what cannot be is refused by name, and changes nothing', async (t) => {
  const directory = await scratchDirectory(t);
  const image = await makeImage(directory);
  const raw = join(directory, 'disk.raw');
  const small = join(directory, 'small.qcow2');
  await writeFile(raw, new Uint8Array(1 << 20));
  await qemuImg(['create', '-q', '-f', 'qcow2', small, '1M']);
  await qemuImg(['bitmap', '--add', small, 'b']);
  const before = await readFile(image);
  const refused: readonly (readonly [args: readonly string[], status: number, message: RegExp])[] =
    [
      [['--add', image, 'fine'], 1, /Bitmap already exists: fine/],
      [['--remove', image, 'none'], 1, /Dirty bitmap 'none' not found/],
      [['--merge', 'none', image, 'fine'], 1, /Dirty bitmap 'none' not found/],
      [['--add', '-g', '5000', image, 'x'], 1, /granularity 5000 is no power of 2/],
      [['--add', image, 'x'.repeat(1024)], 1, /1 to 1023 bytes, not 1024/],
      [['--add', raw, 'x'], 1, /the format raw keeps no dirty bitmaps/],
      [['--merge', 'b', '-b', small, image, 'fine'], 1, /for 20971520 bytes, the one to merge/],
      [[image, 'fine'], 2, /needs --add/],
      [['-g', '4k', '--clear', image, 'fine'], 2, /needs --add/],
    ];
  for (const [args, status, message] of refused) {
    const done = await vdiskfs(['bitmap', ...args]);
    assert.equal(done.status, status, args.join(' '));
    assert.match(done.stderr, message);
  }
  const isSame = before.equals(await readFile(image));
  const flags = (await listedBitmaps(image)).map((b) => b.flags);
  assert.deepEqual(flags, [[], ['auto']], `the file is the same: ${isSame}`);
  await assertClean(image);
});

test('convert takes bitmaps along as qemu-img does, and leaves broken ones only when told', async (t) => {
  const directory = await scratchDirectory(t);
  const made = await makeImage(directory);
  const ours = join(directory, 'ours.qcow2');
  const theirs = join(directory, 'theirs.qcow2');
  await succeed(['convert', '--bitmaps', '-O', 'qcow2', made, ours]);
  await qemuImg(['convert', '--bitmaps', '-O', 'qcow2', made, theirs]);
  assert.deepEqual(await bitmapsOf(directory, ours), await bitmapsOf(directory, theirs));
  await assertClean(ours);
  await assertSameContent(made, ours);
  await succeed(['convert', '-O', 'qcow2', made, theirs]);
  assert.deepEqual(await listedBitmaps(theirs), []);

  // As a crash leaves it: written, and never saved.
  const broken = join(directory, 'broken.qcow2');
  const graph = await testGraph({ directory });
  const node = await graph.open({ path: made, format: 'qcow2', readOnly: false });
  await node.write(guestOffset(0), new Uint8Array(512));
  await node.flush();
  await copyFile(made, broken);
  await graph.close(node);
  const refused = await vdiskfs(['convert', '--bitmaps', '-O', 'qcow2', broken, `${ours}.2`]);
  assert.equal(refused.status, 1);
  assert.match(refused.stderr, /inconsistent bitmap 'coarse'.*--skip-broken-bitmaps/);
  const flags = ['--bitmaps', '--skip-broken-bitmaps', '-O', 'qcow2'];
  await succeed(['convert', ...flags, broken, `${ours}.3`]);
  await qemuImg(['convert', ...flags, broken, `${theirs}.3`]);
  const found = await bitmapsOf(directory, `${ours}.3`);
  assert.deepEqual(found, await bitmapsOf(directory, `${theirs}.3`));
  const toRaw = await vdiskfs(['convert', '--bitmaps', '-O', 'raw', made, `${ours}.raw`]);
  assert.equal(toRaw.status, 1);
  assert.match(toRaw.stderr, /the format raw keeps no dirty bitmaps/);
});
