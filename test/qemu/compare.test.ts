import assert from 'node:assert/strict';
import { copyFile } from 'node:fs/promises';
import { describe, test } from 'node:test';
import { IMAGE_MATRIX } from '../support/images.ts';
import { vdiskfs, vdiskfsJson } from '../support/loaded-vdiskfs.ts';
import { qemuImg, qemuIo } from '../support/qemu-img.ts';
import { suiteDirectory } from '../support/scratch.ts';
import { run } from '../support/vdiskfs.ts';

describe('compare', () => {
  const scratch = suiteDirectory();

  const bothSay = async (args: readonly string[], status: number): Promise<void> => {
    const theirs = await run('qemu-img', ['compare', ...args]);
    assert.equal(theirs.status, status, `qemu-img: ${theirs.stdout}${theirs.stderr}`);
    const ours = await vdiskfs(['compare', ...args]);
    assert.equal(ours.status, status, `vdiskfs: ${ours.stdout}${ours.stderr}`);
  };

  for (const recipe of IMAGE_MATRIX.filter((r) => r.name !== 'empty')) {
    test(`an image equals its flat copy and no changed one: ${recipe.name}`, async () => {
      const image = await recipe.make(scratch.path);
      const flat = `${scratch.path}/${recipe.name}.img`;
      await qemuImg(['convert', '-O', 'raw', image, flat]);
      await bothSay(['-F', 'raw', image, flat], 0);
      if (recipe.name === 'nothing') return;
      await qemuIo(flat, ['write -P 0xee 900k 1k'], ['-f', 'raw']);
      await bothSay(['-F', 'raw', image, flat], 1);
      const found = await vdiskfsJson(['compare', '-F', 'raw', image, flat], [1]);
      assert.deepEqual(found, { identical: false, reason: 'content', offset: 900 * 1024 });
    });
  }

  test('a longer tail of zeros is equal, of data is not, and strict takes neither', async () => {
    const [short, zeros, data] = ['short', 'zeros', 'data'].map((n) => `${scratch.path}/${n}.img`);
    assert.ok(short && zeros && data);
    await qemuImg(['create', '-q', '-f', 'raw', short, '1M']);
    await qemuIo(short, ['write -P 1 0 1M'], ['-f', 'raw']);
    await copyFile(short, zeros);
    await qemuImg(['resize', '-q', '-f', 'raw', zeros, '3M']);
    await copyFile(zeros, data);
    await qemuIo(data, ['write -P 1 2560k 512'], ['-f', 'raw']);
    const raw = ['-f', 'raw', '-F', 'raw'];
    await bothSay([...raw, short, zeros], 0);
    await bothSay([...raw, zeros, short], 0);
    await bothSay([...raw, short, data], 1);
    await bothSay([...raw, data, short], 1);
    await bothSay([...raw, '-s', short, zeros], 1);
    await bothSay([...raw, '-s', short, short], 0);
  });

  test('strict sees an allocated zero where the other has nothing', async () => {
    const [none, zero] = [`${scratch.path}/none.qcow2`, `${scratch.path}/zero.qcow2`];
    for (const image of [none, zero]) await qemuImg(['create', '-q', '-f', 'qcow2', image, '1M']);
    await qemuIo(zero, ['write -P 0 0 64k']);
    await bothSay([none, zero], 0);
    await bothSay(['-s', none, zero], 1);
  });

  test('an image that does not open exits 2', async () => {
    await bothSay([`${scratch.path}/gone.img`, `${scratch.path}/gone.img`], 2);
  });
});
