/** `vdiskfs umount`: flushes, unmounts, and waits for the daemon to end. */
import { endMount } from '../../daemon/end-mount.ts';
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
    await endMount(options.mountpoint, { lazy: options.lazy });
    return EXIT.success;
  },
});
