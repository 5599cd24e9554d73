/** `vdiskfs restart`: swaps a mount's engine for the installed version, without unmounting. */
import { restartMount } from '../../daemon/restart.ts';
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
      .example('$0 restart /mnt/disks', 'After an installation: programs see a pause, no error'),
  run: async (options) => {
    await restartMount(options.mountpoint);
    return EXIT.success;
  },
});
