/** `vdiskfs commit`: brings what an overlay has into its backing image. */
import { stat } from 'node:fs/promises';
import { isView } from '../../daemon/mount-table.ts';
import { commitImage } from '../../image/commit.ts';
import { defineCommand, UsageError } from '../command.ts';
import { EXIT } from '../exit-codes.ts';
import { declareFormat, declareOffline, offlineContext } from '../offline.ts';
import { print } from '../print.ts';
import { interruptible, startProgress } from '../progress.ts';
import { declareRate, paceOf } from '../rate.ts';

export const command = defineCommand({
  declare: (yargs) =>
    declareRate(declareFormat(declareOffline(yargs)))
      .positional('file', { type: 'string', demandOption: true, describe: 'Overlay' })
      .option('base', {
        alias: 'b',
        type: 'string',
        requiresArg: true,
        describe: 'Image of its chain that gets it all; the overlay stays as it is then',
        defaultDescription: 'the one directly below',
      })
      .option('keep', {
        alias: 'd',
        type: 'boolean',
        default: false,
        describe: 'The overlay stays as it is: it is not emptied',
      })
      .option('progress', {
        alias: 'p',
        type: 'boolean',
        defaultDescription: 'on a terminal',
        describe: 'Show a progress bar',
      })
      .option('quiet', { alias: 'q', type: 'boolean', default: false, describe: 'Print nothing' })
      .example('$0 commit overlay.qcow2', 'Its backing image shows what it shows; it is empty'),
  run: async (options) => {
    const { file } = options;
    if (await isView(file)) throw new UsageError('is a view in use; unmount it first', file);
    await stat(file);
    const progress = await startProgress('commit', options.progress);
    try {
      const context = await offlineContext(options);
      await interruptible((signal) =>
        commitImage(
          {
            path: file,
            format: options.format ?? null,
            base: options.base ?? null,
            keep: options.keep,
            progress: progress.update,
            pace: paceOf(options.rate, signal),
            signal,
          },
          context,
        ),
      );
    } finally {
      progress.stop();
    }
    if (!options.quiet) await print('Image committed.\n');
    return EXIT.success;
  },
});
