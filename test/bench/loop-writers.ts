/** Several direct writers of one file through a loop device that uses direct I/O: is what they wrote there? */
import type { Disks } from './disks.ts';
import { fio, tool } from './programs.ts';
import type { Serve } from './servers.ts';

const job = (device: string): string =>
  [
    ...['[x]', `filename=${device}`, 'direct=1', 'rw=randwrite', 'bs=4k', 'size=16m'],
    ...['offset_increment=16m', 'numjobs=8', 'ioengine=libaio', 'iodepth=16', 'group_reporting=1'],
    ...['verify=crc32c', 'verify_fatal=1', 'verify_state_save=0', ''],
  ].join('\n');

export const directWritersThroughLoop = async (
  serve: Serve,
  disks: Disks,
  scratch: string,
): Promise<string> => {
  const image = await disks.make('full');
  const served = await serve(image, { scratch, format: 'qcow2' });
  try {
    const device = (
      await tool('losetup', ['--find', '--show', '--direct-io=on', served.path])
    ).trim();
    try {
      await fio(scratch, job(device));
      return 'correct';
    } catch (error) {
      return `wrong: ${String(error).split('\n').slice(0, 3).join(' ')}`;
    } finally {
      await tool('losetup', ['--detach', device]);
    }
  } finally {
    await served.close();
  }
};
