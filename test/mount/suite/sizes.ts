/** How views grow, and how they do not shrink. */
import assert from 'node:assert/strict';
import { readFile, stat, truncate, writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import { failingTool } from '../../support/file-tools.ts';
import { assertClean, assertSameContent, qemuImg } from '../../support/qemu-img.ts';
import { MIB, pattern, readRange, writeRange } from './bytes.ts';
import { DISK_FORMATS, makeDisk } from './disk.ts';
import { makeQcow2 } from './image-matrix.ts';
import { type MountSubject, placeOf } from './subject.ts';

export const sizeTests = (subject: MountSubject): void => {
  for (const format of DISK_FORMATS) {
    test(`${format}: making a view smaller is refused, and the log names the way out`, async (t) => {
      const place = await placeOf(t, subject);
      const bytes = pattern(MIB);
      const disk = await makeDisk(place, format, bytes);
      const mounted = await place.mount();
      const view = mounted.path(disk.view);
      await assert.rejects(truncate(view, 512), { code: 'EPERM' });
      await assert.rejects(truncate(view, 0), { code: 'EPERM' });
      await assert.rejects(writeFile(view, 'x'), { code: 'EPERM' });
      await failingTool('sh', ['-c', `: > '${view}'`]);
      assert.deepEqual(await readFile(view), bytes);
      assert.match(mounted.log, /--allow-shrink/);
    });

    test(`${format}: with --allow-shrink a view becomes as short as it is told, in the image too`, async (t) => {
      const place = await placeOf(t, subject);
      const disk = await makeDisk(place, format, pattern(4 * MIB));
      const mounted = await place.mount(['--allow-shrink']);
      const view = mounted.path(disk.view);
      await truncate(view, MIB);
      assert.deepEqual(await readFile(view), pattern(4 * MIB).subarray(0, MIB));
      await truncate(view, 2 * MIB);
      assert.deepEqual(await readRange(view, MIB, MIB), Buffer.alloc(MIB));
      await mounted.unmount();
      await disk.assertSound();
    });
  }

  test('writing past the end and truncating upwards grow the image, with zeros between', async (t) => {
    const place = await placeOf(t, subject);
    await makeQcow2(place.image('disk.qcow2'), { bytes: pattern(MIB) });
    await writeFile(place.image('flat.img'), pattern(MIB));
    const mounted = await place.mount();
    const expected = Buffer.concat([pattern(MIB), Buffer.alloc(MIB + 300), pattern(1000, 9)]);
    for (const name of ['disk.raw', 'flat.raw']) {
      await writeRange(mounted.path(name), 2 * MIB + 300, pattern(1000, 9));
      const shown = await readFile(mounted.path(name));
      assert.deepEqual(shown.subarray(0, expected.length), expected, name);
      // A qcow2 image has whole sectors.
      assert.ok(shown.length - expected.length < 512, `${name} has ${shown.length} bytes`);
      assert.ok(
        shown.subarray(expected.length).every((byte) => byte === 0),
        name,
      );
      await truncate(mounted.path(name), 5 * MIB);
      assert.equal((await stat(mounted.path(name))).size, 5 * MIB);
    }
    await mounted.unmount();
    await assertClean(place.image('disk.qcow2'));
    await assertSameContent(place.image('disk.qcow2'), place.image('flat.img'));
  });

  test('growing an overlay past a longer backing image shows zeros there', async (t) => {
    const place = await placeOf(t, subject);
    await makeQcow2(place.image('base.qcow2'), { bytes: pattern(2 * MIB) });
    const backing = ['-b', 'base.qcow2', '-F', 'qcow2'];
    await qemuImg(['create', '-q', '-f', 'qcow2', ...backing, place.image('top.qcow2'), '1M']);
    const mounted = await place.mount();
    await truncate(mounted.path('top.raw'), 2 * MIB);
    const expected = Buffer.concat([pattern(2 * MIB).subarray(0, MIB), Buffer.alloc(MIB)]);
    assert.deepEqual(await readFile(mounted.path('top.raw')), expected);
    await mounted.unmount();
    await assertClean(place.image('top.qcow2'));
  });
};
