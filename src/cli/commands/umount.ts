/** `vdiskfs umount`: flushes, unmounts, and waits for the daemon to end. */
import { endMount } from '../../daemon/end-mount.ts';
import type { JobType } from '../../job/job-info.ts';
import { endsWithMount } from '../../job/job-list.ts';
import { defineCommand } from '../command.ts';
import { EXIT } from '../exit-codes.ts';

export const command = defineCommand({
  declare: (yargs) =>
    yargs
      .positional('mountpoint', {
        type: 'string',
        demandOption: true,
        describe: 'Where it is mounted',
      })
      .option('lazy', {
        type: 'boolean',
        default: false,
        describe: 'Detach it at once; open files go on until they are closed',
      })
      .example(
        '$0 umount /mnt/disks',
        'Waits for a loop device that is just going; names who holds it',
      ),
  run: async (options) => {
    const { lazy } = options;
    const jobs = await endMount(options.mountpoint, { lazy });
    // A mount that was only detached goes on, and its jobs with it.
    if (!lazy) for (const { device, type } of jobs) process.stderr.write(outlookOf(device, type));
    return EXIT.success;
  },
});

const outlookOf = (id: string, type: JobType): string => {
  const outlook = endsWithMount(type) ? 'is cancelled' : 'waits for the next mount of its image';
  return `vdiskfs: job ${id} (${type}) ${outlook}\n`;
};
