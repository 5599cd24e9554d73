/** Disks of every writable format with the same content, for the tests that hold for all of them. */
import { readFile, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { assertClean, qemuImg } from '../../support/qemu-img.ts';
import { MIB, pattern } from './bytes.ts';
import { makeQcow2 } from './image-matrix.ts';
import type { Place } from './subject.ts';

export const DISK_FORMATS = ['qcow2', 'raw'] as const;
export type DiskFormat = (typeof DISK_FORMATS)[number];

export interface Disk {
  /** The view's name. */
  readonly view: string;
  /** The image file. */
  readonly path: string;
  /** Fails unless qemu-img finds nothing wrong with the image. Not while it is mounted. */
  assertSound(): Promise<void>;
  /** The guest's bytes as qemu-img reads them. Not while it is mounted. */
  content(): Promise<Buffer>;
}

/** `disk`, with these bytes (a multiple of 512). */
export const makeDisk = async (
  place: Place,
  format: DiskFormat,
  bytes: Uint8Array,
): Promise<Disk> => {
  const disk = diskOf(place, format, 'disk');
  if (format === 'raw') await writeFile(disk.path, bytes);
  else await makeQcow2(disk.path, { bytes });
  return disk;
};

/** `top`: 2 MiB of `pattern`, then a hole of 1 MiB; in qcow2 an overlay without data of its own over `base`. */
export const makeTop = async (place: Place, format: DiskFormat): Promise<Disk> => {
  const disk = diskOf(place, format, 'top');
  if (format === 'raw') {
    await writeFile(disk.path, pattern(2 * MIB));
    await truncate(disk.path, 3 * MIB);
    return disk;
  }
  await makeQcow2(place.image('base.qcow2'), { bytes: pattern(2 * MIB) });
  const backing = ['-b', 'base.qcow2', '-F', 'qcow2'];
  await qemuImg(['create', '-q', '-f', 'qcow2', ...backing, disk.path, '3M']);
  return disk;
};

const diskOf = (place: Place, format: DiskFormat, stem: string): Disk => {
  const path = place.image(format === 'raw' ? `${stem}.img` : `${stem}.qcow2`);
  return {
    view: `${stem}.raw`,
    path,
    assertSound: async () => {
      if (format === 'qcow2') await assertClean(path);
    },
    content: async () => {
      const flat = join(place.root, `${stem}.flat`);
      await qemuImg(['convert', '-f', format, '-O', 'raw', path, flat]);
      return readFile(flat);
    },
  };
};
