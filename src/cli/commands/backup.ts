/** `vdiskfs backup`: what an image shows at this moment goes to another one, while guests go on writing. */
import { resolve } from 'node:path';
import { isUrl } from '../../block/remote-url.ts';
import { defineCommand, UsageError } from '../command.ts';
import { declareWait, runJob } from '../job-wait.ts';
import { connectToDevice } from '../mounted-device.ts';
import { refuseExisting } from '../new-file.ts';
import { declareJson, wantsJson } from '../print.ts';
import { parseSize } from '../size.ts';

export const command = defineCommand({
  declare: (yargs) =>
    declareWait(declareJson(yargs))
      .positional('view', {
        type: 'string',
        demandOption: true,
        describe: 'Path of the view in its mount',
      })
      .positional('target', { type: 'string', demandOption: true, describe: 'Image to write' })
      .option('sync', {
        choices: ['full', 'top', 'none', 'incremental'] as const,
        default: 'full' as const,
        requiresArg: true,
        describe:
          'What is copied: all, what the image has over its backing file, only what guests overwrite, what is dirty in --bitmap',
      })
      .option('bitmap', {
        type: 'string',
        requiresArg: true,
        describe: 'Dirty bitmap of an incremental backup; it is cleared when that succeeds',
      })
      .option('format', {
        type: 'string',
        requiresArg: true,
        defaultDescription: "the source's; of one that is there: probed",
        describe: 'Format of TARGET',
      })
      .option('existing', {
        type: 'boolean',
        default: false,
        describe: 'TARGET is there, and is written over',
      })
      .option('compress', { type: 'boolean', default: false, describe: 'Pack clusters (qcow2)' })
      .option('speed', {
        type: 'string',
        requiresArg: true,
        describe: 'Bytes a second at most [default: no limit]',
      })
      .example('$0 backup --wait /mnt/disks/vm.raw vm-backup.qcow2', 'The whole disk, as it is now')
      .example(
        '$0 backup --sync incremental --bitmap b --existing /mnt/disks/vm.raw day2.qcow2',
        'What was written since the last backup, into an overlay made for it',
      ),
  run: async (options) => {
    const { sync, bitmap, existing, wait } = options;
    if ((sync === 'incremental') !== (bitmap !== undefined))
      throw new UsageError('goes with --sync incremental, which needs it', '--bitmap');
    const target = isUrl(options.target) ? options.target : resolve(options.target);
    if (!existing && !isUrl(target))
      await refuseExisting(target, 'backup', 'give --existing to write over it');
    const mounted = await connectToDevice(options.view);
    try {
      const given = {
        target,
        sync,
        mode: existing || isUrl(target) ? 'existing' : 'absolute-paths',
        compress: options.compress,
        ...(bitmap === undefined ? {} : { bitmap }),
        ...(options.format === undefined ? {} : { format: options.format }),
        ...(options.speed === undefined ? {} : { speed: parseSize(options.speed, '--speed') }),
      };
      return await runJob(mounted, 'drive-backup', given, { wait, json: wantsJson(options) });
    } finally {
      mounted.client.close();
    }
  },
});
