import assert from 'node:assert/strict';
import { dirname } from 'node:path';
import { describe, test } from 'node:test';
import { IMAGE_MATRIX } from '../support/images.ts';
import { vdiskfs, vdiskfsJson } from '../support/loaded-vdiskfs.ts';
import { qemuImg, qemuImgJson } from '../support/qemu-img.ts';
import { scratchDirectory, suiteDirectory } from '../support/scratch.ts';

describe('info', () => {
  const scratch = suiteDirectory();

  for (const recipe of IMAGE_MATRIX) {
    test(`has every field of qemu-img: ${recipe.name}`, async () => {
      const image = await recipe.make(scratch.path);
      assert.deepEqual(await vdiskfsJson(['info', image]), await qemuImgJson('info', [image]));
    });
  }

  test('shows a whole chain as qemu-img does, names relative as given', async () => {
    const chain = IMAGE_MATRIX.find((r) => r.name === 'chain');
    const top = (await chain?.make(scratch.path)) ?? '';
    assert.deepEqual(
      await vdiskfsJson(['info', '--backing-chain', top]),
      await qemuImgJson('info', ['--backing-chain', top]),
    );
    const done = await vdiskfs(['info', '--backing-chain', '--json', 'chain-top.qcow2'], {
      cwd: dirname(top),
    });
    const names = (JSON.parse(done.stdout) as { filename: string }[]).map((i) => i.filename);
    assert.deepEqual(names, ['chain-top.qcow2', 'chain-middle.qcow2', 'chain-base.img']);
  });

  test('for people says what qemu-img says', async () => {
    for (const name of ['snapshots', 'chain', 'v2-cluster-65536']) {
      const image = (await IMAGE_MATRIX.find((r) => r.name === name)?.make(scratch.path)) ?? '';
      const ours = await vdiskfs(['info', image]);
      assert.equal(ours.stdout, await qemuImg(['info', image]));
    }
  });

  test('needs no backing file to be there, but a chain does', async () => {
    const image = `${scratch.path}/orphan.qcow2`;
    await qemuImg([
      'create',
      '-q',
      '-u',
      '-f',
      'qcow2',
      '-b',
      'gone.img',
      '-F',
      'raw',
      image,
      '1M',
    ]);
    const info = (await vdiskfsJson(['info', image])) as Record<string, unknown>;
    assert.equal(info['backing-filename'], 'gone.img');
    const chain = await vdiskfs(['info', '--backing-chain', image]);
    assert.equal(chain.status, 1);
    assert.match(chain.stderr, /gone\.img: no such file/);
  });

  test('a backing file elsewhere is shown by name and opened only when allowed', async (t) => {
    const elsewhere = await scratchDirectory(t);
    const base = `${elsewhere}/base.img`;
    await qemuImg(['create', '-q', '-f', 'raw', base, '1M']);
    const image = `${scratch.path}/stranger.qcow2`;
    await qemuImg(['create', '-q', '-f', 'qcow2', '-b', base, '-F', 'raw', image]);
    assert.equal((await vdiskfs(['info', image])).status, 0);
    const refused = await vdiskfs(['info', '--backing-chain', image]);
    assert.equal(refused.status, 1);
    assert.ok(refused.stderr.includes(`--backing-dir ${elsewhere}`), refused.stderr);
    const allowed = ['info', '--backing-chain', '--backing-dir', elsewhere, image];
    assert.equal((await vdiskfs(allowed)).status, 0);
  });

  test('a chain that loops is an error, not a loop', async () => {
    const [a, b] = [`${scratch.path}/loop-a.qcow2`, `${scratch.path}/loop-b.qcow2`];
    for (const [image, below] of [
      [a, b],
      [b, a],
    ] as const) {
      await qemuImg(['create', '-q', '-u', '-f', 'qcow2', '-b', below, '-F', 'qcow2', image, '1M']);
    }
    for (const command of [
      ['info', '--backing-chain', a],
      ['map', a],
    ]) {
      const done = await vdiskfs(command);
      assert.equal(done.status, 1);
      assert.match(done.stderr, /loops/);
    }
  });
});
