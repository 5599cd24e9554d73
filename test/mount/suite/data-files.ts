/** Images that keep their guest's bytes in a file of their own. */
import assert from 'node:assert/strict';
import { readdir, readFile } from 'node:fs/promises';
import { test } from 'node:test';
import { fallocateTool } from '../../support/file-tools.ts';
import { assertClean, qemuImg, qemuIo } from '../../support/qemu-img.ts';
import { MIB, pattern, writeRange } from './bytes.ts';
import { type MountSubject, placeOf } from './subject.ts';

export const dataFileTests = (subject: MountSubject): void => {
  for (const options of ['', ',data_file_raw=on']) {
    test(`an external data file is written through its image, and has no view: data_file${options}`, async (t) => {
      const place = await placeOf(t, subject);
      const [path, data] = [place.image('disk.qcow2'), place.image('outer.raw')];
      const o = `data_file=${data}${options}`;
      await qemuImg(['create', '-q', '-f', 'qcow2', '-o', o, path, '4M']);
      await qemuIo(path, ['write -P 7 1M 1M']);
      const mounted = await place.mount();
      assert.deepEqual(await readdir(mounted.mountpoint), ['disk.raw']);
      const view = mounted.path('disk.raw');
      const expected = Buffer.alloc(4 * MIB);
      expected.fill(7, MIB, 2 * MIB);
      assert.deepEqual(await readFile(view), expected);
      for (const [offset, bytes] of [
        [1000, pattern(300_000)],
        [MIB + 511, pattern(5000, 2)],
        [3 * MIB, pattern(MIB, 3)],
      ] as const) {
        await writeRange(view, offset, bytes);
        bytes.copy(expected, offset);
      }
      if (subject.capabilities.fallocate) {
        await fallocateTool(view, ['-p'], { offset: 100_000, lengthBytes: 150_000 });
        expected.fill(0, 100_000, 250_000);
        await writeRange(view, 150_000, pattern(10));
        pattern(10).copy(expected, 150_000);
      }
      assert.deepEqual(await readFile(view), expected);
      await mounted.unmount();
      await assertClean(path);
      await qemuImg(['convert', '-O', 'raw', path, `${place.root}/flat`]);
      assert.deepEqual(await readFile(`${place.root}/flat`), expected);
      if (options !== '') assert.deepEqual(await readFile(data), expected);
    });
  }
};
