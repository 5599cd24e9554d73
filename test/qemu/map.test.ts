import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { IMAGE_MATRIX } from '../support/images.ts';
import { vdiskfs, vdiskfsJson } from '../support/loaded-vdiskfs.ts';
import { qemuImgJson } from '../support/qemu-img.ts';
import { suiteDirectory } from '../support/scratch.ts';

describe('map', () => {
  const scratch = suiteDirectory();

  for (const recipe of IMAGE_MATRIX) {
    test(`has the records of qemu-img: ${recipe.name}`, async () => {
      const image = await recipe.make(scratch.path);
      assert.deepEqual(await vdiskfsJson(['map', image]), await qemuImgJson('map', [image]));
    });
  }

  test('shows the part that is asked for', async () => {
    const image = (await IMAGE_MATRIX.find((r) => r.name === 'chain')?.make(scratch.path)) ?? '';
    const range = ['--start-offset', '100k', '--max-length', '1M'];
    assert.deepEqual(
      await vdiskfsJson(['map', ...range, image]),
      await qemuImgJson('map', [...range, image]),
    );
  });

  test('for people lists the data and the file that it lies in', async () => {
    const image = (await IMAGE_MATRIX.find((r) => r.name === 'chain')?.make(scratch.path)) ?? '';
    const done = await vdiskfs(['map', image]);
    const rows = done.stdout.trim().split('\n').slice(1);
    assert.ok(
      rows.some((r) => /^0 +0x10000 +0 +\S*chain-base\.img$/.test(r)),
      done.stdout,
    );
    assert.ok(
      rows.some((r) => /^0x10000 +0x1000 +0x\w+ +\S*chain-top\.qcow2$/.test(r)),
      done.stdout,
    );
  });
});
