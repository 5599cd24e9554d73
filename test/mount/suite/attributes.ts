/** What stat, statfs and the extended attributes of a mount say. */
import assert from 'node:assert/strict';
import { chmod, chown, readdir, readFile, stat, statfs, utimes, writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import { failingTool, getXattr, xattrNames } from '../../support/file-tools.ts';
import { MIB, pattern, writeRange } from './bytes.ts';
import { makeTop } from './disk.ts';
import { makeQcow2 } from './image-matrix.ts';
import { type MountSubject, placeOf } from './subject.ts';

export const attributeTests = (subject: MountSubject): void => {
  test('st_size is the virtual size, st_blocks what the image takes', async (t) => {
    const place = await placeOf(t, subject);
    await makeQcow2(place.image('disk.qcow2'), {
      bytes: Buffer.concat([pattern(MIB), Buffer.alloc(63 * MIB)]),
    });
    const view = (await place.mount()).path('disk.raw');
    const before = await stat(view);
    assert.equal(before.size, 64 * MIB);
    assert.ok(before.blocks * 512 >= MIB, `${before.blocks} blocks hold the data`);
    assert.ok(before.blocks * 512 < 4 * MIB, `${before.blocks} blocks do not hold the holes`);
    await writeRange(view, 32 * MIB, pattern(4 * MIB));
    assert.ok((await stat(view)).blocks - before.blocks >= (4 * MIB) / 512);
  });

  test('owner and mode are those of the image file, the root’s those of the source', async (t) => {
    const place = await placeOf(t, subject);
    await writeFile(place.image('disk.img'), pattern(4096));
    await chmod(place.image('disk.img'), 0o751);
    await chown(place.image('disk.img'), 1234, 5678);
    await chmod(place.images, 0o705);
    const mounted = await place.mount();
    const view = await stat(mounted.path('disk.raw'));
    assert.deepEqual([view.mode & 0o7777, view.uid, view.gid], [0o640, 1234, 5678]);
    assert.equal((await stat(mounted.mountpoint)).mode & 0o7777, 0o705);
  });

  test('/proc/mounts shows fuse.vdiskfs and the source', async (t) => {
    const place = await placeOf(t, subject);
    await writeFile(place.image('disk.img'), pattern(4096));
    const mounted = await place.mount();
    const lines = (await readFile('/proc/mounts', 'utf8')).split('\n');
    const line = lines.find((l) => l.includes(` ${mounted.mountpoint} `)) ?? '';
    assert.ok(line.startsWith(`${place.images} ${mounted.mountpoint} fuse.vdiskfs `), line);
  });

  test('statfs has a real block size and the space of the source', async (t) => {
    const place = await placeOf(t, subject);
    await writeFile(place.image('disk.img'), pattern(4096));
    const here = await statfs((await place.mount()).mountpoint);
    const there = await statfs(place.images);
    assert.ok(here.bsize >= 512);
    assert.ok(Math.abs(here.blocks * here.bsize - there.blocks * there.bsize) <= 2 * here.bsize);
  });

  test('extended attributes tell what a view is, and where the mount is controlled', async (t) => {
    const place = await placeOf(t, subject);
    await makeTop(place, 'qcow2');
    const mounted = await place.mount();
    const view = mounted.path('top.raw');
    assert.equal(await getXattr(view, 'user.vdiskfs.format'), 'qcow2');
    assert.equal(await getXattr(view, 'user.vdiskfs.virtual-size'), String(3 * MIB));
    assert.equal(await getXattr(view, 'user.vdiskfs.backing'), place.image('base.qcow2'));
    assert.ok((await xattrNames(view)).includes('user.vdiskfs.jobs'));
    assert.match(await getXattr(mounted.mountpoint, 'user.vdiskfs.pid'), /^[1-9]\d*$/);
    await assert.rejects(getXattr(view, 'user.nothing'));
  });

  test('nothing can be made, removed or renamed in a mount', async (t) => {
    const place = await placeOf(t, subject);
    await writeFile(place.image('disk.img'), pattern(4096));
    const mounted = await place.mount();
    await failingTool('touch', [mounted.path('new')]);
    await failingTool('mkdir', [mounted.path('new')]);
    await failingTool('rm', ['-f', mounted.path('disk.raw')]);
    await failingTool('mv', [mounted.path('disk.raw'), mounted.path('other.raw')]);
    assert.deepEqual(await readdir(mounted.mountpoint), ['disk.raw']);
  });

  if (!subject.capabilities.setTimes) return;
  test('times that are set on a view are set on its image file', async (t) => {
    const place = await placeOf(t, subject);
    await writeFile(place.image('disk.img'), pattern(4096));
    const mounted = await place.mount();
    await utimes(mounted.path('disk.raw'), 1_000_000, 1_500_000);
    assert.equal((await stat(mounted.path('disk.raw'))).mtimeMs, 1_500_000_000);
    assert.equal((await stat(place.image('disk.img'))).mtimeMs, 1_500_000_000);
  });
};
