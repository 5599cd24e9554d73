/** `vdiskfs activate`: takes the image of a view back from another host. */
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
      .example('$0 activate /mnt/disks/vm.raw', 'Take the locks, read the metadata anew, go on'),
  run: async ({ view }) => {
    await setActive(view, { active: true, force: false });
    return EXIT.success;
  },
});
