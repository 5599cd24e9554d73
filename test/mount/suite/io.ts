/** Reading and writing a view in every way that a program may. */
import assert from 'node:assert/strict';
import { open, readFile, stat, writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import { mmapRead, mmapWrite, sha256, tool } from '../../support/file-tools.ts';
import { MIB, pattern, readRange, writeRange } from './bytes.ts';
import { DISK_FORMATS, makeTop } from './disk.ts';
import { type MountSubject, placeOf } from './subject.ts';

export const ioTests = (subject: MountSubject): void => {
  for (const format of DISK_FORMATS) {
    test(`${format}: a shared mapping reads and writes the disk`, async (t) => {
      const place = await placeOf(t, subject);
      const disk = await makeTop(place, format);
      const mounted = await place.mount();
      const view = mounted.path(disk.view);
      assert.deepEqual(
        await mmapRead(view, 70_000, 100),
        pattern(2 * MIB).subarray(70_000, 70_100),
      );
      await mmapWrite(view, 70_010, pattern(20, 99));
      await mounted.unmount();
      const expected = pattern(2 * MIB);
      expected.set(pattern(20, 99), 70_010);
      assert.deepEqual((await disk.content()).subarray(0, 2 * MIB), expected);
      await disk.assertSound();
    });

    test(`${format}: O_DIRECT reads and writes sectors, and agrees with the page cache`, async (t) => {
      const place = await placeOf(t, subject);
      const disk = await makeTop(place, format);
      await writeFile(`${place.root}/in`, pattern(96 * 512, 5));
      const mounted = await place.mount();
      const view = mounted.path(disk.view);
      const direct = ['bs=512', 'status=none'];
      await tool('dd', [
        `if=${place.root}/in`,
        `of=${view}`,
        'seek=333',
        'oflag=direct',
        'conv=notrunc',
        ...direct,
      ]);
      await tool('dd', [
        `if=${view}`,
        `of=${place.root}/out`,
        'skip=300',
        'count=200',
        'iflag=direct',
        ...direct,
      ]);
      const expected = pattern(2 * MIB);
      expected.set(pattern(96 * 512, 5), 333 * 512);
      assert.deepEqual(
        await readFile(`${place.root}/out`),
        expected.subarray(300 * 512, 500 * 512),
      );
      assert.deepEqual(await readRange(view, 0, 2 * MIB), expected);
      await mounted.unmount();
      await disk.assertSound();
    });

    test(`${format}: what was synced is in the image, and is there after a remount`, async (t) => {
      const place = await placeOf(t, subject);
      const disk = await makeTop(place, format);
      const first = await place.mount();
      await writeRange(first.path(disk.view), 12_345, pattern(200_000, 3));
      await first.unmount();
      const second = await place.mount();
      assert.deepEqual(
        await readRange(second.path(disk.view), 12_345, 200_000),
        pattern(200_000, 3),
      );
      assert.deepEqual(await readRange(second.path(disk.view), 0, 12_345), pattern(12_345));
    });

    test(`${format}: readers and writers of one view at the same time see whole writes`, async (t) => {
      const place = await placeOf(t, subject);
      const disk = await makeTop(place, format);
      const mounted = await place.mount();
      const view = mounted.path(disk.view);
      const writers = Array.from({ length: 8 }, async (_, i) => {
        for (let round = 0; round < 8; round++) {
          await writeRange(
            view,
            i * 300_000 + round * 1000,
            Buffer.alloc(1000, 16 * i + round + 1),
          );
        }
      });
      await Promise.all([...writers, sha256(view), sha256(view)]);
      for (let i = 0; i < 8; i++) {
        const expected = Buffer.concat(
          Array.from({ length: 8 }, (_, r) => Buffer.alloc(1000, 16 * i + r + 1)),
        );
        assert.deepEqual(await readRange(view, i * 300_000, 8000), expected, `writer ${i}`);
      }
      await mounted.unmount();
      await disk.assertSound();
    });
  }

  test('the backing image of another view, and a read-only mount, are not written', async (t) => {
    const place = await placeOf(t, subject);
    await makeTop(place, 'qcow2');
    const sums = {
      base: await sha256(place.image('base.qcow2')),
      top: await sha256(place.image('top.qcow2')),
    };
    const writable = await place.mount();
    assert.equal((await stat(writable.path('base.raw'))).mode & 0o222, 0);
    await assert.rejects(open(writable.path('base.raw'), 'r+'), { code: 'EROFS' });
    await writable.unmount();
    const readOnly = await place.mount(['--read-only']);
    await assert.rejects(open(readOnly.path('top.raw'), 'r+'), { code: 'EROFS' });
    assert.deepEqual(await readRange(readOnly.path('top.raw'), 0, MIB), pattern(MIB));
    await readOnly.unmount();
    assert.equal(await sha256(place.image('base.qcow2')), sums.base);
    assert.equal(await sha256(place.image('top.qcow2')), sums.top);
  });

  if (!subject.capabilities.keepsCache) return;
  test('a second read comes from the kernel’s page cache, also after the file was closed', async (t) => {
    const place = await placeOf(t, subject);
    await writeFile(place.image('disk.img'), pattern(MIB));
    const mounted = await place.mount();
    await readFile(mounted.path('disk.raw'));
    // Behind the mount's back: whoever asks the image again would see it.
    await writeRange(place.image('disk.img'), 0, Buffer.alloc(MIB));
    assert.deepEqual(await readFile(mounted.path('disk.raw')), pattern(MIB));
  });
};
