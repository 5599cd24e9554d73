/** `vdiskfs deactivate`: lets another host use the image of a view. */
import { defineCommand } from '../command.ts';
import { EXIT } from '../exit-codes.ts';
import { setActive } from '../set-active.ts';

export const command = defineCommand({
  declare: (yargs) =>
    yargs
      .positional('view', {
        type: 'string',
        demandOption: true,
        describe: 'Path of the view in its mount',
      })
      .option('force', {
        type: 'boolean',
        default: false,
        describe: 'Also while somebody may have it open for writing',
      })
      .example('$0 deactivate /mnt/disks/vm.raw', 'Flush, give the locks back, hold requests'),
  run: async ({ view, force }) => {
    await setActive(view, { active: false, force });
    return EXIT.success;
  },
});
