/** A host file system that is full: the guest hears of it, and writing goes on when there is space again. */
import assert from 'node:assert/strict';
import { mkdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import type { Mounted } from '../../support/mounted.ts';
import { assertClean, qemuImg } from '../../support/qemu-img.ts';
import { type Finished, run } from '../../support/vdiskfs.ts';
import { MIB, pattern, readRange } from './bytes.ts';
import { DISK_FORMATS, type DiskFormat } from './disk.ts';
import { type MountSubject, type Place, placeOf } from './subject.ts';

/** Long enough that a writer who does not wait for space has ended. */
const WAITING_MS = 1500;

interface FullDisk {
  readonly mounted: Mounted;
  readonly view: string;
  /** Gives 5 of the 8 MiB back. */
  makeSpace(): Promise<void>;
  /** Writes the first `megabytes` MiB of the pattern at the start of the view, with options of dd. */
  write(megabytes: number, options: readonly string[]): Promise<Finished>;
  /** Unmounts and checks the image. */
  end(): Promise<void>;
}

/** A sparse disk of 64 MiB on a file system of 8 MiB, of which less than 3 are free. */
const makeFullDisk = async (place: Place, format: DiskFormat): Promise<FullDisk> => {
  const small = join(place.root, 'small');
  await mkdir(small);
  assert.equal((await run('mount', ['-t', 'tmpfs', '-o', 'size=8m', 'none', small])).status, 0);
  place.cleanup.after(async () => {
    await run('umount', ['-l', small]);
  });
  const image = join(small, format === 'raw' ? 'disk.img' : 'disk.qcow2');
  await qemuImg(['create', '-q', '-f', format, image, '64M']);
  await writeFile(join(small, 'filler'), Buffer.alloc(5 * MIB));
  const data = join(place.root, 'data');
  await writeFile(data, pattern(8 * MIB));
  const mounted = await place.mount([], [small]);
  const view = mounted.path('disk.raw');
  const common = [`if=${data}`, `of=${view}`, 'bs=64k', 'conv=notrunc,fsync', 'status=none'];
  return {
    mounted,
    view,
    makeSpace: () => rm(join(small, 'filler')),
    write: (megabytes, options) =>
      run('dd', [...common, `count=${megabytes * 16}`, ...options], { timeoutMs: 30_000 }),
    end: async () => {
      await mounted.unmount();
      if (format === 'qcow2') await assertClean(image);
    },
  };
};

export const fullDiskTests = (subject: MountSubject): void => {
  for (const format of DISK_FORMATS) {
    test(`${format}: a full disk reaches a direct writer as ENOSPC, and writing goes on when space is back`, async (t) => {
      const disk = await makeFullDisk(await placeOf(t, subject), format);
      assert.equal((await disk.write(1, ['oflag=direct'])).status, 0);
      const refused = await disk.write(8, ['oflag=direct']);
      assert.equal(refused.status, 1);
      assert.match(refused.stderr, /No space left/);
      assert.deepEqual(await readRange(disk.view, 0, MIB), pattern(8 * MIB).subarray(0, MIB));
      await disk.makeSpace();
      const { status, stderr } = await disk.write(4, ['oflag=direct']);
      assert.equal(status, 0, stderr);
      const expected = pattern(8 * MIB).subarray(0, 4 * MIB);
      assert.deepEqual(await readRange(disk.view, 0, 4 * MIB), expected);
      await disk.end();
    });

    if (!subject.capabilities.writebackCache) continue;
    test(`${format}: what the kernel writes back on a full disk waits for space and is not lost`, async (t) => {
      const disk = await makeFullDisk(await placeOf(t, subject), format);
      let ended = false;
      const writing = disk.write(5, []).then((done) => {
        ended = true;
        return done;
      });
      await new Promise((resolve) => setTimeout(resolve, WAITING_MS));
      assert.equal(ended, false, 'the writer waits');
      assert.match(disk.mounted.log, /disk\.raw.*space/i);
      await disk.makeSpace();
      const { status, stderr } = await writing;
      assert.equal(status, 0, stderr);
      const expected = pattern(8 * MIB).subarray(0, 5 * MIB);
      assert.deepEqual(await readRange(disk.view, 0, 5 * MIB), expected);
      await disk.end();
    });
  }
};
