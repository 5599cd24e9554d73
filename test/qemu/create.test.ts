import assert from 'node:assert/strict';
import { readFile, stat } from 'node:fs/promises';
import { describe, test } from 'node:test';
import { vdiskfs, vdiskfsJson } from '../support/loaded-vdiskfs.ts';
import { assertClean, qemuImg, qemuImgJson, qemuIo } from '../support/qemu-img.ts';
import { suiteDirectory } from '../support/scratch.ts';

const CLUSTER_BYTES = [512, 4096, 65536, 2097152];
const CASES: readonly (readonly [options: string, size: string])[] = [
  ...CLUSTER_BYTES.flatMap((bytes) =>
    ['0', '1000001', '3M', '1G'].map((size) => [`cluster_size=${bytes}`, size] as const),
  ),
  ...[1, 2, 4, 8, 16, 32, 64].map((bits) => [`refcount_bits=${bits}`, '10M'] as const),
  ...CLUSTER_BYTES.map((bytes) => [`cluster_size=${bytes},preallocation=metadata`, '20M'] as const),
  ...[1, 8, 64].map((bits) => [`refcount_bits=${bits},preallocation=metadata`, '300M'] as const),
  ['compat=0.10', '10T'],
  ['compat=v2,preallocation=metadata', '10M'],
  ['compat=1.1,lazy_refcounts=on', '10M'],
  ['compression_type=zstd', '10M'],
  ['extended_l2=on', '1000001'],
  ['extended_l2=on,cluster_size=16k', '1G'],
  ['extended_l2=on,cluster_size=2M,preallocation=metadata', '20M'],
  ['extended_l2=on,cluster_size=16k,preallocation=metadata', '20M'],
  ['extended_l2=on,preallocation=falloc', '3M'],
  ['preallocation=falloc', '3M'],
  ['cluster_size=4k,preallocation=full', '3M'],
];

const HEADER = { from: 0, to: 4096 };

describe('create', () => {
  const scratch = suiteDirectory();

  const described = async (image: string): Promise<unknown> => {
    const info = (await qemuImgJson('info', [image])) as Record<string, unknown>;
    return { ...info, filename: null, 'actual-size': null };
  };

  for (const [options, size] of CASES) {
    test(`is what qemu-img makes: ${options}, ${size}`, async () => {
      const [ours, theirs] = [`${scratch.path}/ours.qcow2`, `${scratch.path}/theirs.qcow2`];
      const args = ['-f', 'qcow2', '-o', options];
      const done = await vdiskfs(['create', ...args, ours, size]);
      assert.equal(done.status, 0, done.stderr);
      await qemuImg(['create', '-q', ...args, theirs, size]);
      await assertClean(ours);
      assert.deepEqual(await described(ours), await described(theirs));
      assert.equal((await vdiskfs(['check', ours])).status, 0);
      if (options.includes('preallocation')) {
        const map = (await qemuImgJson('map', [ours])) as { present: boolean; offset?: number }[];
        // Subclusters have a place, but are not there before they are written.
        assert.ok(map.every((r) => r.offset !== undefined));
        assert.ok(map.every((r) => r.present !== options.includes('extended_l2')));
        const { blocks } = await stat(ours);
        if (!options.includes('metadata')) assert.ok(blocks * 512 >= 3 << 20, `${blocks} blocks`);
      }
    });
  }

  test('a raw image takes its space when it is told to', async () => {
    for (const preallocation of ['off', 'falloc', 'full']) {
      const [ours, theirs] = [`${scratch.path}/ours.raw`, `${scratch.path}/theirs.raw`];
      const args = ['create', '-f', 'raw', '-o', `preallocation=${preallocation}`];
      const done = await vdiskfs([...args, ours, '3000001']);
      assert.equal(done.status, 0, done.stderr);
      await qemuImg([...args, '-q', theirs, '3000001']);
      const [a, b] = await Promise.all([stat(ours), stat(theirs)]);
      assert.equal(a.size, b.size);
      assert.equal(a.blocks * 512 >= a.size, preallocation !== 'off', `${a.blocks} blocks`);
      assert.ok((await readFile(ours)).equals(await readFile(theirs)));
    }
  });

  test('the header is byte for byte that of qemu-img', async () => {
    const [ours, theirs] = [`${scratch.path}/ours.qcow2`, `${scratch.path}/theirs.qcow2`];
    await qemuImg(['create', '-q', '-f', 'raw', `${scratch.path}/base.img`, '5M']);
    const plain = ['compat=0.10', 'compat=1.1', 'cluster_size=512', 'lazy_refcounts=on'];
    for (const options of [...plain, 'compression_type=zstd', 'extended_l2=on']) {
      for (const backing of [[], ['-b', 'base.img', '-F', 'raw']]) {
        const args = ['-f', 'qcow2', '-o', options, ...backing];
        assert.equal((await vdiskfs(['create', ...args, ours, '1M'])).status, 0);
        await qemuImg(['create', '-q', ...args, theirs, '1M']);
        const [a, b] = await Promise.all([readFile(ours), readFile(theirs)]);
        const to = options === 'cluster_size=512' ? 512 : HEADER.to;
        assert.deepEqual(a.subarray(HEADER.from, to), b.subarray(HEADER.from, to), options);
      }
    }
  });

  test('an overlay is as large as its backing image, and shows it', async () => {
    const [base, top] = [`${scratch.path}/below.qcow2`, `${scratch.path}/top.qcow2`];
    await qemuImg(['create', '-q', '-f', 'qcow2', base, '5M']);
    await qemuIo(base, ['write -P 7 1M 1M']);
    const args = ['create', '-f', 'qcow2', '-b', 'below.qcow2', '-F', 'qcow2'];
    assert.equal((await vdiskfs([...args, top])).status, 0);
    assert.deepEqual(await vdiskfsJson(['info', top]), await qemuImgJson('info', [top]));
    await qemuImg(['compare', base, top]);
    await qemuIo(top, ['write -P 8 0 2M', 'read -P 8 0 2M']);
    await assertClean(top);
  });

  test('images that we made take writes of QEMU', async () => {
    const image = `${scratch.path}/written.qcow2`;
    for (const options of [
      'cluster_size=512,refcount_bits=1',
      'preallocation=metadata',
      'extended_l2=on,preallocation=metadata',
    ]) {
      const args = ['create', '-f', 'qcow2', '-o', options, image, '4M'];
      assert.equal((await vdiskfs(args)).status, 0);
      await qemuIo(image, ['write -P 1 0 1M', 'write -z 2M 1M', 'read -P 1 0 1M']);
      await assertClean(image);
    }
  });

  test('what cannot be made is refused before the file is touched', async () => {
    const kept = `${scratch.path}/kept.qcow2`;
    await qemuImg(['create', '-q', '-f', 'qcow2', kept, '1M']);
    const before = await readFile(kept);
    const cases: [string[], RegExp][] = [
      [['-o', 'cluster_size=3000'], /cluster_size: 3000 is no power of two/],
      [['-o', 'cluster_size=4M'], /cluster_size: 4194304 is no power of two from 512 to 2M/],
      [['-o', 'refcount_bits=3'], /refcount_bits: 3 is no power of two/],
      [['-o', 'refcount_bits=128'], /refcount_bits/],
      [['-o', 'refcount_bits=8,compat=0.10'], /needs compat 1\.1/],
      [['-o', 'lazy_refcounts=on,compat=0.10'], /needs compat 1\.1/],
      [['-o', 'compression_type=zstd,compat=0.10'], /compression_type: zstd needs compat 1\.1/],
      [['-o', 'compat=2.0'], /compat/],
      [['-o', 'preallocation=all'], /preallocation/],
      [['-o', 'extended_l2=on,compat=0.10'], /extended_l2: it needs compat 1\.1/],
      [['-o', 'extended_l2=on,cluster_size=8k'], /extended_l2: it needs clusters of 16 KiB/],
      [['-b', 'kept.qcow2', '-F', 'qcow2'], /own backing chain/],
      [['-b', 'gone.img', '-F', 'raw'], /gone\.img: no such file/],
      [['-b', 'base.img', '-F', 'qcow2'], /base\.img/],
      [['-b', 'below.qcow2', '-F', 'qcow2', '-o', 'preallocation=metadata'], /preallocation/],
    ];
    for (const [args, message] of cases) {
      const done = await vdiskfs(['create', '-f', 'qcow2', ...args, kept, '1M']);
      assert.ok(done.status === 1 || done.status === 2, args.join(' '));
      assert.match(done.stderr, message);
      assert.deepEqual(await readFile(kept), before, args.join(' '));
    }
    const large = await vdiskfs(['create', '-f', 'qcow2', '-o', 'cluster_size=512', kept, '1T']);
    assert.equal(large.status, 1);
    assert.match(large.stderr, /size: 1099511627776 bytes are more than the 137438953472/);
    assert.deepEqual(await readFile(kept), before);
  });

  test('a new file that cannot be made is not left behind', async () => {
    const image = `${scratch.path}/never.qcow2`;
    assert.equal(
      (await vdiskfs(['create', '-f', 'qcow2', '-o', 'compat=3', image, '1M'])).status,
      2,
    );
    await assert.rejects(stat(image), { code: 'ENOENT' });
  });

  test('-u names a backing file that is not there, and needs a size', async () => {
    const image = `${scratch.path}/later.qcow2`;
    const args = ['create', '-f', 'qcow2', '-u', '-b', 'later.img', '-F', 'raw', image];
    assert.match((await vdiskfs(args)).stderr, /a size is needed/);
    assert.equal((await vdiskfs([...args, '1M'])).status, 0);
    const info = (await qemuImgJson('info', [image])) as Record<string, unknown>;
    assert.equal(info['backing-filename'], 'later.img');
  });
});
