/** Holes: making them, and finding them. */
import assert from 'node:assert/strict';
import { constants } from 'node:fs';
import { open, readFile, stat } from 'node:fs/promises';
import { test } from 'node:test';
import { dataExtents, failingTool, fallocateTool, tool } from '../../support/file-tools.ts';
import { assertClean, qemuImg, qemuImgJson, qemuIo } from '../../support/qemu-img.ts';
import { MIB, makeOverlay, pattern, writeRange } from './bytes.ts';
import { makeQcow2 } from './image-matrix.ts';
import { type MountSubject, placeOf } from './subject.ts';

export const fallocateTests = (subject: MountSubject): void => {
  test('a punched hole reads as zeros, over a backing image and inside of clusters', async (t) => {
    const place = await placeOf(t, subject);
    await makeOverlay(place);
    const mounted = await place.mount();
    const view = mounted.path('top.raw');
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
    await assertClean(place.image('top.qcow2'));
    const flat = `${place.root}/flat`;
    await qemuImg(['convert', '-O', 'raw', place.image('top.qcow2'), flat]);
    assert.deepEqual(await readFile(flat), expected);
  });

  test('punching gives the space back to the host', async (t) => {
    const place = await placeOf(t, subject);
    await makeQcow2(place.image('disk.qcow2'), { bytes: pattern(16 * MIB) });
    const mounted = await place.mount();
    await fallocateTool(mounted.path('disk.raw'), ['-p'], { offset: MIB, lengthBytes: 14 * MIB });
    await tool('sync', [mounted.path('disk.raw')]);
    await mounted.unmount();
    const info = (await qemuImgJson('info', [place.image('disk.qcow2')])) as {
      'actual-size': number;
    };
    assert.ok(info['actual-size'] < 4 * MIB, `${info['actual-size']} bytes are left`);
    await assertClean(place.image('disk.qcow2'));
  });

  test('zero range zeroes and may grow, and preallocating changes no byte', async (t) => {
    const place = await placeOf(t, subject);
    await makeOverlay(place);
    const mounted = await place.mount();
    const view = mounted.path('top.raw');
    await fallocateTool(view, ['-z'], { offset: 5000, lengthBytes: 100_000 });
    await fallocateTool(view, [], { offset: 200_000, lengthBytes: 300_000 });
    await fallocateTool(view, ['-z'], { offset: 3 * MIB - 4096, lengthBytes: MIB });
    const expected = Buffer.concat([pattern(2 * MIB), Buffer.alloc(2 * MIB - 4096)]);
    expected.fill(0, 5000, 105_000);
    assert.deepEqual(await readFile(view), expected);
    await mounted.unmount();
    await assertClean(place.image('top.qcow2'));
  });

  test('only what fallocate knows is taken: a punch past the end changes nothing', async (t) => {
    const place = await placeOf(t, subject);
    await makeOverlay(place);
    const view = (await place.mount()).path('top.raw');
    await fallocateTool(view, ['-p'], { offset: 3 * MIB, lengthBytes: MIB });
    assert.equal((await stat(view)).size, 3 * MIB);
    await failingTool('fallocate', ['-c', '-o', '0', '-l', '65536', view]);
    await failingTool('fallocate', ['-i', '-o', '0', '-l', '65536', view]);
  });

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

  test('while a view is open for writing, no written byte is in a hole', async (t) => {
    const place = await placeOf(t, subject);
    await qemuImg(['create', '-q', '-f', 'qcow2', place.image('disk.qcow2'), '8M']);
    const view = (await place.mount()).path('disk.raw');
    const file = await open(view, constants.O_RDWR);
    try {
      await file.write(pattern(100), 0, 100, 5 * MIB);
      const extents = await dataExtents(view);
      assert.ok(extents.some(([start, end]) => start <= 5 * MIB && end >= 5 * MIB + 100));
    } finally {
      await file.close();
    }
  });
};
