import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { readdir, readFile, stat, writeFile } from 'node:fs/promises';
import { describe, test } from 'node:test';
import { IMAGE_MATRIX } from '../support/images.ts';
import { vdiskfs } from '../support/loaded-vdiskfs.ts';
import {
  assertClean,
  assertSameContent,
  qemuImg,
  qemuImgJson,
  qemuIo,
} from '../support/qemu-img.ts';
import { suiteDirectory } from '../support/scratch.ts';

const succeed = async (args: readonly string[]): Promise<void> => {
  const done = await vdiskfs(args, { timeoutMs: 60_000 });
  assert.equal(done.status, 0, done.stderr);
};

const failWith = async (args: readonly string[], message: RegExp): Promise<void> => {
  const done = await vdiskfs(args);
  assert.equal(done.status, 1, done.stderr);
  assert.match(done.stderr, message);
};

const TARGETS: readonly (readonly [name: string, args: readonly string[]])[] = [
  ['raw', ['-O', 'raw']],
  ['qcow2', ['-O', 'qcow2']],
  ['qcow2 of small clusters, out of order', ['-O', 'qcow2', '-W', '-o', 'cluster_size=512']],
  ['qcow2 version 2', ['-O', 'qcow2', '-o', 'compat=0.10']],
  ['packed qcow2', ['-O', 'qcow2', '-c']],
  ['packed qcow2 of 4 KiB clusters', ['-O', 'qcow2', '-c', '-o', 'cluster_size=4k']],
  ['qcow2 packed with zstd', ['-O', 'qcow2', '-c', '-o', 'compression_type=zstd']],
  [
    'qcow2 of 2 MiB clusters packed with zstd',
    ['-O', 'qcow2', '-c', '-o', 'compression_type=zstd,cluster_size=2M'],
  ],
  ['packed qcow2 that counts to one', ['-O', 'qcow2', '-c', '-o', 'refcount_bits=1']],
];

describe('convert', () => {
  const scratch = suiteDirectory();
  const path = (name: string): string => `${scratch.path}/${name}`;

  /** Copied to every kind of target; the others to one plain and one packed. */
  const THOROUGH = new Set(['v3-cluster-65536', 'unaligned-length', 'chain', 'compressed']);

  for (const recipe of IMAGE_MATRIX) {
    const targets = THOROUGH.has(recipe.name) ? TARGETS : [TARGETS[1], TARGETS[4]];
    test(`a copy shows what the image shows, in formats of all kinds: ${recipe.name}`, async () => {
      const image = await recipe.make(scratch.path);
      for (const [name, args] of targets.flatMap((t) => (t === undefined ? [] : [t]))) {
        const copy = path(`${recipe.name}.copy`);
        await succeed(['convert', ...args, image, copy]);
        const format = args[1] ?? 'raw';
        await qemuImg(['compare', '-F', format, image, copy]);
        if (format === 'qcow2') await assertClean(copy);
        assert.equal((await stat(copy)).size % 512, 0, name);
      }
    });
  }

  test('packing shares host clusters, and what QEMU and we write into it later is right', async () => {
    const source = path('texty.img');
    const line = Buffer.from('the quick brown fox jumps over the lazy dog\n');
    const bytes = Buffer.alloc(8 << 20);
    for (let at = 0; at < bytes.length; at += line.length) line.copy(bytes, at);
    for (let at = 0; at < bytes.length; at += 1 << 20) randomBytes(30_000).copy(bytes, at + 5000);
    await writeFile(source, bytes);
    const packed = path('texty.qcow2');
    await succeed(['convert', '-O', 'qcow2', '-c', '-f', 'raw', source, packed]);
    assert.ok((await stat(packed)).size < bytes.length / 4, `${(await stat(packed)).size} bytes`);
    const found = (await qemuImgJson('check', [packed])) as { 'compressed-clusters': number };
    assert.equal(found['compressed-clusters'], 128);
    await qemuIo(packed, ['write -P 3 100k 10k', 'write -P 4 1M 64k', 'discard 2M 192k']);
    await qemuIo(
      source,
      ['write -P 3 100k 10k', 'write -P 4 1M 64k', 'write -z 2M 192k'],
      ['-f', 'raw'],
    );
    await assertClean(packed);
    await qemuImg(['compare', '-f', 'raw', source, packed]);
    const again = path('texty2.qcow2');
    await succeed(['convert', '-O', 'qcow2', '-c', packed, again]);
    await succeed(['convert', '-n', '-O', 'qcow2', '-c', packed, again]);
    await assertClean(again);
    await assertSameContent(packed, again);
  });

  test('what QEMU packs with zstd we read, and QEMU what we pack, at every cluster size', async () => {
    const source = path('zstd.img');
    const words = Array.from({ length: 60_000 }, (_, i) => `${i * 7919} lorem ipsum\n`).join('');
    const bytes = Buffer.alloc(6 << 20);
    Buffer.from(words).copy(bytes);
    randomBytes(300_000).copy(bytes, 2 << 20);
    await writeFile(source, bytes);
    for (const clusterSize of ['4k', '64k', '2M']) {
      const [theirs, ours] = [path(`theirs-${clusterSize}`), path(`ours-${clusterSize}`)];
      const options = ['-o', `compression_type=zstd,cluster_size=${clusterSize}`];
      const args = ['convert', '-c', '-f', 'raw', '-O', 'qcow2', ...options, source];
      await qemuImg([...args, theirs]);
      await succeed([...args, ours]);
      await succeed(['compare', '-f', 'raw', '-F', 'qcow2', source, theirs]);
      await qemuImg(['compare', '-f', 'raw', '-F', 'qcow2', source, ours]);
      await assertClean(ours);
      const packed = async (image: string): Promise<unknown> =>
        ((await qemuImgJson('check', [image])) as Record<string, unknown>)['compressed-clusters'];
      assert.equal(await packed(ours), await packed(theirs), clusterSize);
      await qemuIo(ours, ['write -P 3 100k 10k', 'write -c -P 4 4M 2M', 'read -P 4 4M 2M']);
      await assertClean(ours);
    }
  });

  test('holes stay holes, and -S says which zeros become some', async () => {
    const source = path('sparse.img');
    const bytes = Buffer.concat([randomBytes(65_536), Buffer.alloc(1 << 20), randomBytes(100)]);
    await writeFile(source, bytes);
    await succeed(['convert', '-f', 'raw', source, path('sparse.out')]);
    assert.ok((await stat(path('sparse.out'))).blocks * 512 < 200_000);
    await succeed(['convert', '-f', 'raw', '-S', '0', source, path('full.out')]);
    assert.ok((await stat(path('full.out'))).blocks * 512 >= 1 << 20);
    for (const name of ['sparse.out', 'full.out'])
      assert.deepEqual((await readFile(path(name))).subarray(0, bytes.length), bytes);
  });

  test('several images come one after the other', async () => {
    await writeFile(path('one.img'), randomBytes(700 * 512));
    await writeFile(path('two.img'), randomBytes(3000 * 512));
    const files = [path('one.img'), path('two.img')];
    await succeed(['convert', '-f', 'raw', '-O', 'qcow2', ...files, path('both.qcow2')]);
    await qemuImg(['convert', '-f', 'raw', '-O', 'raw', ...files, path('both.img')]);
    await assertSameContent(path('both.qcow2'), path('both.img'));
  });

  test('-B keeps in the copy what is not in the backing image', async () => {
    await writeFile(path('base.img'), randomBytes(2 << 20));
    const backing = ['-b', 'base.img', '-F', 'raw'];
    await qemuImg(['create', '-q', '-f', 'qcow2', ...backing, path('top.qcow2'), '3M']);
    await qemuIo(path('top.qcow2'), [
      'write -P 7 300k 100k',
      'write -z 1M 64k',
      'write -P 8 2500k 9k',
    ]);
    await succeed([
      'convert',
      '-O',
      'qcow2',
      '-B',
      'base.img',
      '-F',
      'raw',
      path('top.qcow2'),
      path('top2.qcow2'),
    ]);
    await assertClean(path('top2.qcow2'));
    await assertSameContent(path('top.qcow2'), path('top2.qcow2'));
    assert.ok((await stat(path('top2.qcow2'))).size < 1 << 20, 'the base is not copied');
  });

  test('an existing image is written over, zeros too, and must be large enough', async () => {
    await writeFile(path('new.img'), Buffer.concat([randomBytes(65_536), Buffer.alloc(196_608)]));
    await qemuImg(['create', '-q', '-f', 'qcow2', path('old.qcow2'), '1M']);
    await qemuIo(path('old.qcow2'), ['write -P 9 0 1M']);
    await succeed([
      'convert',
      '-n',
      '-f',
      'raw',
      '-O',
      'qcow2',
      path('new.img'),
      path('old.qcow2'),
    ]);
    const shown = await qemuIo(path('old.qcow2'), ['read -P 0 64k 192k', 'read -P 9 256k 768k']);
    assert.doesNotMatch(shown, /verification failed/);
    const isZero = ['-n', '--target-is-zero', '-f', 'raw', '-O', 'qcow2'];
    await qemuIo(path('old.qcow2'), ['write -P 9 0 1M']);
    await succeed(['convert', ...isZero, path('new.img'), path('old.qcow2')]);
    const kept = await qemuIo(path('old.qcow2'), ['read -P 9 64k 960k']);
    assert.doesNotMatch(kept, /verification failed/, 'it is believed, and nothing written');
    await qemuImg(['create', '-q', '-f', 'qcow2', path('small.qcow2'), '64k']);
    await failWith(
      ['convert', '-n', '-f', 'raw', '-O', 'qcow2', path('new.img'), path('small.qcow2')],
      /shows 65536 bytes, the sources 262144/,
    );
  });

  test('a target that is a source is refused, and one that cannot be finished is removed', async () => {
    await writeFile(path('self.img'), randomBytes(4096));
    await failWith(
      ['convert', '-f', 'raw', path('self.img'), path('self.img')],
      /written over while it is read/,
    );
    const bad = path('bad.qcow2');
    await qemuImg(['create', '-q', '-f', 'qcow2', bad, '4M']);
    await qemuIo(bad, ['write -c -P 5 1M 64k', 'write -P 1 0 64k']);
    const bytes = await readFile(bad);
    const end = (await qemuImgJson('check', [bad])) as { 'image-end-offset': number };
    // The packed cluster: the last but the plain one.
    bytes.fill(0xff, end['image-end-offset'] - 2 * 65_536, end['image-end-offset'] - 65_536);
    await writeFile(bad, bytes);
    await failWith(['convert', bad, path('never.img')], /bad\.qcow2.*compressed cluster/);
    assert.ok(!(await readdir(scratch.path)).includes('never.img'));
    // Salvaged, it is zeros, as with QEMU; and so is what an entry that points nowhere stands for.
    bytes.writeBigUInt64BE(0x8000_0000_0000_0200n, Number(bytes.readBigUInt64BE(40)) + 65_536 + 8);
    await writeFile(bad, bytes);
    await qemuImg(['convert', '--salvage', '-O', 'raw', bad, path('theirs.img')]);
    const done = await vdiskfs([
      'convert',
      '--salvage',
      '-r',
      '1G',
      '--json',
      bad,
      path('ours.img'),
    ]);
    assert.equal(done.status, 0, done.stderr);
    assert.equal((JSON.parse(done.stdout) as Record<string, unknown>)['lost-bytes'], 131_072);
    assert.match(done.stderr, /65536 bytes at 0x10000 are zeros.*\n.*65536 bytes at 0x100000 are/);
    assert.deepEqual(await readFile(path('ours.img')), await readFile(path('theirs.img')));
    await failWith(
      ['convert', '-c', path('self.img'), path('never.img')],
      /format raw has no compressed clusters/,
    );
    assert.ok(!(await readdir(scratch.path)).includes('never.img'));
  });
});
