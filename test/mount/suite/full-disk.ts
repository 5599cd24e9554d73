/** A host file system that is full: the guest hears of it, and writing goes on when there is space again. */
import assert from 'node:assert/strict';
import { mkdir, open, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { failingTool, tool } from '../../support/file-tools.ts';
import { assertClean, qemuImg } from '../../support/qemu-img.ts';
import { run } from '../../support/vdiskfs.ts';
import { MIB, pattern, readRange } from './bytes.ts';
import { DISK_FORMATS } from './disk.ts';
import { type MountSubject, placeOf } from './subject.ts';

export const fullDiskTests = (subject: MountSubject): void => {
  for (const format of DISK_FORMATS) {
    test(`${format}: a full disk reaches the guest as ENOSPC, and writing goes on when space is back`, async (t) => {
      const place = await placeOf(t, subject);
      const small = join(place.root, 'small');
      await mkdir(small);
      await tool('mount', ['-t', 'tmpfs', '-o', 'size=8m', 'none', small]);
      place.cleanup.after(async () => {
        await run('umount', ['-l', small]);
      });
      const image = join(small, format === 'raw' ? 'disk.img' : 'disk.qcow2');
      await qemuImg(['create', '-q', '-f', format, image, '64M']);
      await writeFile(join(place.root, 'data'), pattern(MIB));
      const mounted = await place.mount([], [small]);
      const view = mounted.path('disk.raw');
      const write = (megabyte: number): string[] => [
        `if=${join(place.root, 'data')}`,
        `of=${view}`,
        'bs=64k',
        `seek=${megabyte * 16}`,
        'oflag=direct',
        'conv=notrunc',
        'status=none',
      ];
      await tool('dd', write(0));
      await writeFile(join(small, 'filler'), Buffer.alloc(5 * MIB));
      assert.match(
        await failingTool('sh', [
          '-c',
          `for i in 1 2 3 4 5 6 7 8; do dd ${ddAt(write)} || exit 1; done`,
        ]),
        /No space/,
      );
      assert.deepEqual(await readRange(view, 0, MIB), pattern(MIB));
      await rm(join(small, 'filler'));
      for (const megabyte of [3, 20]) await tool('dd', write(megabyte));
      const file = await open(view, 'r+');
      await file.sync();
      await file.close();
      assert.deepEqual(await readRange(view, 20 * MIB, MIB), pattern(MIB));
      await mounted.unmount();
      if (format === 'qcow2') await assertClean(image);
    });
  }
};

/** The arguments for a shell, with `$i` as the megabyte. */
const ddAt = (write: (megabyte: number) => string[]): string =>
  write(0)
    .map((word) => (word.startsWith('seek=') ? 'seek=$((i * 16))' : `'${word}'`))
    .join(' ');
