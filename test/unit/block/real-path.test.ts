import assert from 'node:assert/strict';
import { mkdir, realpath, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { openGate } from '../../../src/block/open-gate.ts';
import { isWithin, realPathOutside } from '../../../src/block/real-path.ts';
import { scratchDirectory } from '../../support/scratch.ts';

test('a path resolves as the host resolves it', async (t) => {
  const root = await scratchDirectory(t);
  await mkdir(join(root, 'a', 'b'), { recursive: true });
  await writeFile(join(root, 'a', 'file'), '');
  await symlink('a/b', join(root, 'relative'));
  await symlink(join(root, 'a'), join(root, 'absolute'));
  await symlink('../file', join(root, 'a', 'b', 'up'));
  for (const path of [
    'a/file',
    'relative/up',
    'absolute/b/../file',
    'relative/../file',
    './a//b',
  ]) {
    const asked = `${root}/${path}`;
    assert.equal(await realPathOutside(asked, null), await realpath(asked), path);
  }
});

test('what is not there, is no directory, or loops is an error by its errno', async (t) => {
  const root = await scratchDirectory(t);
  await writeFile(join(root, 'file'), '');
  await symlink('loop', join(root, 'loop'));
  await assert.rejects(realPathOutside(join(root, 'none'), null), { errno: 'ENOENT' });
  await assert.rejects(realPathOutside(join(root, 'none', 'deeper'), null), { errno: 'ENOENT' });
  await assert.rejects(realPathOutside(join(root, 'file', 'deeper'), null), { errno: 'ENOTDIR' });
  await assert.rejects(realPathOutside(join(root, 'loop'), null), { errno: 'ELOOP' });
});

test('no way leads into the excluded directory, whatever it is called on the way', async (t) => {
  const root = await scratchDirectory(t);
  const mountpoint = join(root, 'mnt');
  await mkdir(mountpoint);
  await mkdir(join(root, 'images'));
  await writeFile(join(mountpoint, 'view.raw'), '');
  await symlink(mountpoint, join(root, 'images', 'link'));
  await symlink('../mnt/view.raw', join(root, 'images', 'view'));
  const ways = ['mnt', 'mnt/view.raw', 'mnt/none', 'images/link/view.raw', 'images/view'];
  for (const way of ways) {
    const asked = join(root, way);
    await assert.rejects(realPathOutside(asked, mountpoint), { errno: 'EACCES' }, way);
  }
  const gate = await openGate([root], mountpoint);
  await assert.rejects(gate.resolve('../mnt/view.raw', join(root, 'images', 'top')), {
    errno: 'EACCES',
  });
});

test('a directory is not within one whose name it only begins with', () => {
  assert.equal(isWithin('/srv/images', '/srv/images'), true);
  assert.equal(isWithin('/srv/images/a', '/srv/images'), true);
  assert.equal(isWithin('/srv/images2', '/srv/images'), false);
  assert.equal(isWithin('/srv', '/'), true);
});
