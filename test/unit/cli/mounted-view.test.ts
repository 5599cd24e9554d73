import assert from 'node:assert/strict';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { BlockError } from '../../../src/base/block-error.ts';
import { mountedView, namingViews } from '../../../src/cli/mounted-view.ts';
import { scratchDirectory } from '../../support/scratch.ts';

test('the view of an image is found by the source of its mount', async (t) => {
  const root = await scratchDirectory(t);
  const images = join(root, 'images');
  const mount = join(root, 'mnt');
  await mkdir(images);
  await mkdir(mount);
  for (const file of [
    join(images, 'disk.qcow2'),
    join(images, 'both.qcow2'),
    join(root, 'single.img'),
    join(mount, 'disk.raw'),
    join(mount, 'both.raw'),
    join(mount, 'both.qcow2.raw'),
    join(mount, 'single.raw'),
  ]) {
    await writeFile(file, '');
  }
  const mounts = [
    { source: images, mountpoint: mount },
    { source: join(root, 'single.img'), mountpoint: mount },
    { source: join(root, 'gone'), mountpoint: join(root, 'gone too') },
  ];
  const find = (path: string) => mountedView(path, mounts);
  assert.equal(await find(join(images, 'disk.qcow2')), join(mount, 'disk.raw'));
  assert.equal(await find(join(images, 'both.qcow2')), join(mount, 'both.qcow2.raw'));
  assert.equal(await find(join(root, 'single.img')), join(mount, 'single.raw'));
  assert.equal(await find(join(images, 'gone.qcow2')), null);
  assert.equal(await find(join(mount, 'disk.raw')), null);
});

test('a lock that some other program holds is told as it is', async () => {
  const refusal = new BlockError({ kind: 'locked', message: 'is in use', path: '/nowhere/x' });
  const locks = namingViews({ acquire: () => Promise.reject(refusal) });
  await assert.rejects(locks.acquire('/nowhere/x', 'read'), (e) => e === refusal);
});
