/** Holes: making them, and finding them. */
import assert from 'node:assert/strict';
import { constants } from 'node:fs';
import { open, readFile, stat } from 'node:fs/promises';
import { test } from 'node:test';
import { dataExtents, failingTool, fallocateTool, tool } from '../../support/file-tools.ts';
import { qemuImg, qemuImgJson, qemuIo } from '../../support/qemu-img.ts';
import { MIB, pattern, writeRange } from './bytes.ts';
import { DISK_FORMATS, makeDisk, makeTop } from './disk.ts';
import { makeQcow2 } from './image-matrix.ts';
import { type MountSubject, placeOf } from './subject.ts';

export const fallocateTests = (subject: MountSubject): void => {
  for (const format of DISK_FORMATS) {
    test(`${format}: a punched hole reads as zeros, over a backing image and inside of clusters`, async (t) => {
      const place = await placeOf(t, subject);
      const disk = await makeTop(place, format);
      const mounted = await place.mount();
      const view = mounted.path(disk.view);
      await writeRange(view, 0, pattern(MIB, 4));
      const expected = Buffer.concat([
        pattern(MIB, 4),
        pattern(2 * MIB).subarray(MIB),
        Buffer.alloc(MIB),
      ]);
      for (const [offset, lengthBytes] of [
        [1000, 3000],
        [60_000, 200_000],
        [MIB + 65_536, 131_072],
        [MIB + 400_001, 99_999],
      ] as const) {
        await fallocateTool(view, ['-p'], { offset, lengthBytes });
        expected.fill(0, offset, offset + lengthBytes);
      }
      assert.deepEqual(await readFile(view), expected);
      assert.equal((await stat(view)).size, 3 * MIB);
      await mounted.unmount();
      await disk.assertSound();
      assert.deepEqual(await disk.content(), expected);
    });

    test(`${format}: punching gives the space back to the host`, async (t) => {
      const place = await placeOf(t, subject);
      const disk = await makeDisk(place, format, pattern(16 * MIB));
      const mounted = await place.mount();
      await fallocateTool(mounted.path(disk.view), ['-p'], { offset: MIB, lengthBytes: 14 * MIB });
      await tool('sync', [mounted.path(disk.view)]);
      await mounted.unmount();
      const info = (await qemuImgJson('info', [disk.path])) as {
        'actual-size': number;
      };
      assert.ok(info['actual-size'] < 4 * MIB, `${info['actual-size']} bytes are left`);
      await disk.assertSound();
    });

    test(`${format}: zero range zeroes and may grow, and preallocating changes no byte`, async (t) => {
      const place = await placeOf(t, subject);
      const disk = await makeTop(place, format);
      const mounted = await place.mount();
      const view = mounted.path(disk.view);
      await fallocateTool(view, ['-z'], { offset: 5000, lengthBytes: 100_000 });
      await fallocateTool(view, [], { offset: 200_000, lengthBytes: 300_000 });
      await fallocateTool(view, ['-z'], { offset: 3 * MIB - 4096, lengthBytes: MIB });
      const expected = Buffer.concat([pattern(2 * MIB), Buffer.alloc(2 * MIB - 4096)]);
      expected.fill(0, 5000, 105_000);
      assert.deepEqual(await readFile(view), expected);
      await mounted.unmount();
      await disk.assertSound();
    });

    test(`${format}: only what fallocate knows is taken: a punch past the end changes nothing`, async (t) => {
      const place = await placeOf(t, subject);
      const disk = await makeTop(place, format);
      const view = (await place.mount()).path(disk.view);
      await fallocateTool(view, ['-p'], { offset: 3 * MIB, lengthBytes: MIB });
      assert.equal((await stat(view)).size, 3 * MIB);
      await failingTool('fallocate', ['-c', '-o', '0', '-l', '65536', view]);
      await failingTool('fallocate', ['-i', '-o', '0', '-l', '65536', view]);
    });

    test(`${format}: while a view is open for writing, no written byte is in a hole`, async (t) => {
      const place = await placeOf(t, subject);
      const disk = await makeDisk(place, format, Buffer.alloc(8 * MIB));
      const view = (await place.mount()).path(disk.view);
      const file = await open(view, constants.O_RDWR);
      try {
        await file.write(pattern(100), 0, 100, 5 * MIB);
        const extents = await dataExtents(view);
        assert.ok(extents.some(([start, end]) => start <= 5 * MIB && end >= 5 * MIB + 100));
      } finally {
        await file.close();
      }
    });
  }

  if (!subject.capabilities.seekHoles) return;
  test('SEEK_DATA and SEEK_HOLE tell what is allocated in the chain', async (t) => {
    const place = await placeOf(t, subject);
    await makeQcow2(place.image('base.qcow2'), {
      bytes: Buffer.concat([pattern(MIB), Buffer.alloc(7 * MIB)]),
    });
    const backing = ['-b', 'base.qcow2', '-F', 'qcow2'];
    await qemuImg(['create', '-q', '-f', 'qcow2', ...backing, place.image('top.qcow2'), '8M']);
    await qemuIo(place.image('top.qcow2'), ['write -P 1 4M 64k', 'write -z 0 64k']);
    const view = (await place.mount()).path('top.raw');
    assert.deepEqual(await dataExtents(view), [
      [65_536, MIB],
      [4 * MIB, 4 * MIB + 65_536],
    ]);
  });
};
