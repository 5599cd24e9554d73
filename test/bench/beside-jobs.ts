/** What jobs on a large local disk are measured with: its image, and guests that read or write while a job runs. */
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { qemuImg } from '../support/qemu-img.ts';
import { GIB, MIB } from './disks.ts';
import { type FioResult, fio, tool } from './programs.ts';

export const JOB_DISK_BYTES = 2 * GIB;
/** Where a guest is measured beside a job: that takes longer than the guest then. */
export const LONG_JOB_DISK_BYTES = 4 * GIB;

/** A qcow2 image full of random bytes; its path. */
export const makeJobDisk = async (directory: string, bytes: number): Promise<string> => {
  const image = join(directory, 'base.qcow2');
  const random = join(directory, 'base.raw');
  const count = bytes / MIB;
  await tool('dd', ['if=/dev/urandom', `of=${random}`, 'bs=1M', `count=${count}`]);
  await qemuImg(['convert', '-f', 'raw', '-O', 'qcow2', random, image]);
  await rm(random);
  // What is shared has to be on disk, and whoever shares it first would wait.
  await tool('sync', [image]);
  return image;
};

/** 4k requests all over the disk for some seconds; `where`: fio's engine and file. */
export const smallRequests = async (
  scratch: string,
  kind: 'randread' | 'randwrite',
  seconds: number,
  where: readonly string[],
): Promise<FioResult> => {
  const job = [
    ...['[x]', ...where, `rw=${kind}`, 'bs=4k', `size=${JOB_DISK_BYTES}`],
    ...['time_based=1', `runtime=${seconds}`, 'norandommap=1', 'randrepeat=0', ''],
  ].join('\n');
  const [result] = (await fio(scratch, job)).values();
  if (result === undefined) throw new Error('fio reported no job');
  return result;
};

/** A raw file that is served. */
export const throughFile = (path: string): readonly string[] => [`filename=${path}`, 'direct=1'];
