import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { copyFile, stat, writeFile } from 'node:fs/promises';
import { describe, test } from 'node:test';
import { vdiskfs } from '../support/loaded-vdiskfs.ts';
import {
  assertClean,
  assertSameContent,
  qemuImg,
  qemuImgJson,
  qemuIo,
} from '../support/qemu-img.ts';
import { suiteDirectory } from '../support/scratch.ts';

describe('rebase', () => {
  const scratch = suiteDirectory();
  const path = (name: string): string => `${scratch.path}/${name}`;

  const succeed = async (args: readonly string[]): Promise<void> => {
    const done = await vdiskfs(args);
    assert.equal(done.status, 0, done.stderr);
  };

  const backingOf = async (image: string): Promise<unknown> =>
    ((await qemuImgJson('info', [image])) as { 'backing-filename'?: string })['backing-filename'];

  /** old.img (shorter) <- top; new.img shares some of the old one's content, and is longer. */
  const makeImages = async (compat: string): Promise<string> => {
    const old = randomBytes(1536 << 10);
    await writeFile(path('old.img'), old);
    const next = Buffer.concat([old, randomBytes(1 << 20)]);
    randomBytes(100_000).copy(next, 200_000);
    await writeFile(path('new.img'), next);
    const top = path('top.qcow2');
    const backing = ['-b', 'old.img', '-F', 'raw'];
    await qemuImg(['create', '-q', '-f', 'qcow2', '-o', `compat=${compat}`, ...backing, top, '3M']);
    await qemuIo(top, ['write -P 1 100k 64k', 'write -P 2 2M 10k']);
    await qemuImg(['convert', '-O', 'raw', top, path('before.img')]);
    return top;
  };

  for (const compat of ['0.10', '1.1']) {
    test(`the guest sees the same over another backing image, and alone: compat ${compat}`, async () => {
      const top = await makeImages(compat);
      await succeed(['rebase', '-b', 'new.img', '-F', 'raw', top]);
      assert.equal(await backingOf(top), 'new.img');
      await assertClean(top);
      await assertSameContent(top, path('before.img'));
      await succeed(['rebase', '-b', '', top]);
      assert.equal(await backingOf(top), undefined);
      await assertClean(top);
      await assertSameContent(top, path('before.img'));
    });
  }

  test('unsafe changes the name alone, to one of any length that fits', async () => {
    const top = await makeImages('1.1');
    const long = `${'x'.repeat(200)}.img`;
    await copyFile(path('old.img'), path(long));
    for (const name of [long, 'old.img', long]) {
      await succeed(['rebase', '-u', '-b', name, '-F', 'raw', top]);
      assert.equal(await backingOf(top), name);
      await assertClean(top);
      await assertSameContent(top, path('before.img'));
    }
    await succeed(['rebase', '-u', '-b', 'gone.img', '-F', 'raw', top]);
    assert.equal(await backingOf(top), 'gone.img');
  });

  test('a name that does not fit, a loop, and a format without backing files are refused', async () => {
    const small = path('small.qcow2');
    await qemuImg(['create', '-q', '-f', 'qcow2', '-o', 'cluster_size=512', small, '1M']);
    const refused = async (args: readonly string[], message: RegExp): Promise<void> => {
      const done = await vdiskfs(args);
      assert.equal(done.status, 1, done.stderr);
      assert.match(done.stderr, message);
    };
    await refused(['rebase', '-u', '-b', 'y'.repeat(900), '-F', 'raw', small], /does not fit/);
    await refused(['rebase', '-b', 'small.qcow2', '-F', 'qcow2', small], /own backing chain/);
    await refused(
      ['rebase', '-u', '-b', 'a', '-F', 'raw', '-f', 'raw', path('old.img')],
      /raw has no backing/,
    );
    await assertClean(small);
  });
});

describe('resize', () => {
  const scratch = suiteDirectory();
  const path = (name: string): string => `${scratch.path}/${name}`;

  test('an image grows and shrinks as qemu-img makes it', async () => {
    for (const format of ['raw', 'qcow2']) {
      const [ours, theirs] = [path(`ours.${format}`), path(`theirs.${format}`)];
      await qemuImg(['create', '-q', '-f', format, ours, '3M']);
      await qemuIo(ours, ['write -P 1 0 3M'], ['-f', format]);
      await copyFile(ours, theirs);
      for (const [size, flags] of [
        ['5M', []],
        ['+100k', []],
        ['2M', ['--shrink']],
        ['-1M', ['--shrink']],
        ['8M', []],
      ] as const) {
        const done = await vdiskfs(['resize', ...flags, '-f', format, ours, size]);
        assert.equal(done.status, 0, done.stderr);
        await qemuImg(['resize', '-q', ...flags, '-f', format, theirs, size]);
        if (format === 'qcow2') await assertClean(ours);
        await qemuImg(['compare', '-s', '-f', format, '-F', format, ours, theirs], [0, 1]);
        await qemuImg(['compare', '-f', format, '-F', format, ours, theirs]);
        const info = async (image: string) =>
          ((await qemuImgJson('info', ['-f', format, image])) as { 'virtual-size': number })[
            'virtual-size'
          ];
        assert.equal(await info(ours), await info(theirs));
      }
    }
  });

  test('a smaller size that is not meant, and more than there is, are refused', async () => {
    await qemuImg(['create', '-q', '-f', 'qcow2', path('keep.qcow2'), '3M']);
    for (const [size, message] of [
      ['1M', /--shrink/],
      ['-4M', /cannot be taken off/],
    ] as const) {
      const done = await vdiskfs(['resize', path('keep.qcow2'), size]);
      assert.equal(done.status, 1);
      assert.match(done.stderr, message);
    }
    const bad = await vdiskfs(['resize', path('keep.qcow2'), '+lots']);
    assert.equal(bad.status, 2);
  });

  test('preallocation gives what is added a place and space, as qemu-img does', async () => {
    for (const [how, options] of [
      ['metadata', 'compat=1.1'],
      ['falloc', 'compat=1.1'],
      ['full', 'compat=1.1'],
      ['metadata', 'extended_l2=on'],
      ['metadata', 'compat=0.10'],
    ] as const) {
      const [image, theirs] = [path(`${how}.qcow2`), path(`${how}.theirs`)];
      for (const made of [image, theirs])
        await qemuImg(['create', '-q', '-f', 'qcow2', '-o', options, made, '1M']);
      const done = await vdiskfs(['resize', '--preallocation', how, image, '+4M']);
      assert.equal(done.status, 0, done.stderr);
      await assertClean(image);
      const found = (await qemuImgJson('check', [image])) as { 'allocated-clusters': number };
      assert.equal(found['allocated-clusters'], 64, how);
      await qemuImg(['resize', '-q', `--preallocation=${how}`, theirs, '+4M']);
      await assertSameContent(image, theirs);
      const [a, b] = [await stat(image), await stat(theirs)];
      assert.ok(Math.abs(a.blocks - b.blocks) < 400, `${how}: ${a.blocks}, ${b.blocks} blocks`);
      if (options === 'extended_l2=on') continue;
      const map = (made: string): Promise<unknown> => qemuImgJson('map', [made]);
      assert.deepEqual(await map(image), await map(theirs), how);
    }
    const raw = path('metadata.raw');
    await qemuImg(['create', '-q', '-f', 'raw', raw, '1M']);
    const refused = await vdiskfs([
      'resize',
      '-f',
      'raw',
      '--preallocation',
      'metadata',
      raw,
      '2M',
    ]);
    assert.equal(refused.status, 1);
    assert.match(refused.stderr, /raw has no tables/);
  });
});
