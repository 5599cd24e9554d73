/** Images come, go and change while they are mounted. */
import assert from 'node:assert/strict';
import { open, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { sha256 } from '../../support/file-tools.ts';
import { exists } from '../../support/host-files.ts';
import { eventually, refusedMount } from '../../support/mounted.ts';
import { holdWithQemu } from '../../support/qemu-holder.ts';
import { qemuImg } from '../../support/qemu-img.ts';
import { MIB, pattern, writeRange } from './bytes.ts';
import { DISK_FORMATS, makeDisk } from './disk.ts';
import { makeQcow2 } from './image-matrix.ts';
import { type MountSubject, placeOf } from './subject.ts';

export const changeTests = (subject: MountSubject): void => {
  test('a new image is there when its maker looks, and a removed one goes', async (t) => {
    const place = await placeOf(t, subject);
    await writeFile(place.image('a.img'), pattern(4096));
    const mounted = await place.mount();
    assert.deepEqual(await readdir(mounted.mountpoint), ['a.raw']);
    await writeFile(place.image('b.img'), pattern(MIB));
    assert.deepEqual(await readFile(mounted.path('b.raw')), pattern(MIB));
    await rm(place.image('a.img'));
    await eventually('a.raw has gone', async () => !(await exists(mounted.path('a.raw'))));
    assert.deepEqual(await readdir(mounted.mountpoint), ['b.raw']);
  });

  test('a file that takes the place of an image shows its own content', async (t) => {
    const place = await placeOf(t, subject);
    await writeFile(place.image('disk.img'), pattern(MIB, 1));
    const mounted = await place.mount();
    assert.deepEqual(await readFile(mounted.path('disk.raw')), pattern(MIB, 1));
    await writeFile(join(place.root, 'new.img'), pattern(MIB, 2));
    await rename(join(place.root, 'new.img'), place.image('disk.img'));
    await eventually('the new content shows', async () =>
      (await readFile(mounted.path('disk.raw'))).equals(pattern(MIB, 2)),
    );
  });

  test('an image that is removed while it is open can be read and written to the end', async (t) => {
    const place = await placeOf(t, subject);
    await writeFile(place.image('disk.img'), pattern(MIB));
    const mounted = await place.mount();
    const file = await open(mounted.path('disk.raw'), 'r+');
    try {
      await rm(place.image('disk.img'));
      await eventually(
        'the name has gone',
        async () => (await readdir(mounted.mountpoint)).length === 0,
      );
      await file.write(pattern(1000, 8), 0, 1000, 5000);
      const buffer = Buffer.alloc(1000);
      await file.read(buffer, 0, 1000, 5000);
      assert.deepEqual(buffer, pattern(1000, 8));
    } finally {
      await file.close();
    }
  });

  test('names that clash become long, but an open view keeps its name', async (t) => {
    const place = await placeOf(t, subject);
    await writeFile(place.image('open.iso'), pattern(MIB, 1));
    await writeFile(place.image('shut.iso'), pattern(MIB, 2));
    const mounted = await place.mount();
    const file = await open(mounted.path('open.raw'), 'r');
    try {
      await writeFile(place.image('open.img'), pattern(512, 3));
      await writeFile(place.image('shut.img'), pattern(512, 4));
      const names = ['open.img.raw', 'open.raw', 'shut.img.raw', 'shut.iso.raw'];
      await eventually('four names', async () => {
        const shown = (await readdir(mounted.mountpoint)).sort();
        return JSON.stringify(shown) === JSON.stringify(names);
      });
      assert.deepEqual(await readFile(mounted.path('open.img.raw')), pattern(512, 3));
      assert.deepEqual(await readFile(mounted.path('shut.iso.raw')), pattern(MIB, 2));
      assert.deepEqual(await readFile(mounted.path('open.raw')), pattern(MIB, 1));
    } finally {
      await file.close();
    }
  });

  test('single files, NAME=FILE and --format', async (t) => {
    const place = await placeOf(t, subject);
    await makeQcow2(place.image('one.bin'), { bytes: pattern(MIB) });
    await makeQcow2(place.image('two.bin'), { bytes: pattern(MIB, 2) });
    const both = await place.mount(
      [],
      [place.image('one.bin'), `system=${place.image('two.bin')}`],
    );
    assert.deepEqual((await readdir(both.mountpoint)).sort(), ['one.raw', 'system.raw']);
    assert.deepEqual(await readFile(both.path('system.raw')), pattern(MIB, 2));
    await both.unmount();
    const raw = await place.mount(['--format', 'raw'], [place.image('one.bin')]);
    assert.equal(await sha256(raw.path('one.raw')), await sha256(place.image('one.bin')));
  });

  for (const format of DISK_FORMATS) {
    test(`${format}: qemu-img is refused an image that is mounted, from before it is used`, async (t) => {
      const place = await placeOf(t, subject);
      const disk = await makeDisk(place, format, pattern(MIB));
      const mounted = await place.mount();
      const resize = ['resize', '-q', '-f', format, disk.path, '2M'];
      await assert.rejects(qemuImg(resize), /lock/);
      await mounted.unmount();
      await qemuImg(resize);
      await disk.assertSound();
    });

    test(`${format}: an image that QEMU holds is busy until QEMU lets it go`, async (t) => {
      const place = await placeOf(t, subject);
      const disk = await makeDisk(place, format, pattern(MIB));
      await writeFile(place.image('other.img'), pattern(MIB, 2));
      const release = await holdWithQemu(place.cleanup, disk.path, ['-f', format]);
      const mounted = await place.mount();
      const { size, mode } = await stat(mounted.path(disk.view));
      assert.deepEqual([size, mode & 0o777], [0, 0]);
      await assert.rejects(open(mounted.path(disk.view), 'r'), { code: 'EBUSY' });
      assert.match(mounted.log, /disk\.raw.*lock/i);
      assert.deepEqual(await readFile(mounted.path('other.raw')), pattern(MIB, 2));
      await release();
      await eventually('it opens', async () =>
        readFile(mounted.path(disk.view)).then(
          (bytes) => bytes.equals(pattern(MIB)),
          () => false,
        ),
      );
    });
  }

  test('a mount of one file that cannot be opened is refused with its reason', async (t) => {
    const place = await placeOf(t, subject);
    await writeFile(place.image('disk.qcow2'), 'QFI\u00fb is no header');
    const mountpoint = join(place.root, 'refused');
    const done = await refusedMount({
      backend: subject.backend,
      sources: [place.image('disk.qcow2')],
      mountpoint,
      args: ['--format', 'qcow2'],
    });
    assert.equal(done.status, 1);
    assert.match(done.stderr, /disk\.qcow2/);
    await writeRange(place.image('disk.qcow2'), 0, pattern(16));
    assert.deepEqual(await readdir(mountpoint), []);
  });
};
