/** `vdiskfs rebase`: puts an image on another backing file. */
import { rebaseImage } from '../../image/rebase.ts';
import { defineCommand, UsageError } from '../command.ts';
import { backingOf } from '../creation.ts';
import { EXIT } from '../exit-codes.ts';
import { declareFormat, declareOffline, offlineContext } from '../offline.ts';
import { interruptible, startProgress } from '../progress.ts';

export const command = defineCommand({
  declare: (yargs) =>
    declareFormat(declareOffline(yargs))
      .positional('file', { type: 'string', demandOption: true, describe: 'Image to change' })
      .option('backing', {
        alias: 'b',
        type: 'string',
        demandOption: true,
        describe: "New backing image, named from the image's directory; '' for none",
      })
      .option('backing-format', {
        alias: 'F',
        type: 'string',
        requiresArg: true,
        describe: 'Its format; needed unless there is none',
      })
      .option('unsafe', {
        alias: 'u',
        type: 'boolean',
        default: false,
        describe: 'Change the header alone: for a backing image that was moved',
      })
      .option('progress', {
        alias: 'p',
        type: 'boolean',
        defaultDescription: 'on a terminal',
        describe: 'Show a progress bar',
      })
      .example('$0 rebase -b new.qcow2 -F qcow2 top.qcow2', 'What the guest sees stays')
      .example("$0 rebase -b '' top.qcow2", 'An image that stands alone'),
  run: async (options) => {
    const context = await offlineContext(options);
    const { backing } = options;
    if (backing === '' && options['backing-format'] !== undefined)
      throw new UsageError("is the format of nothing: -b is ''", '-F');
    const progress = await startProgress('rebase', options.progress);
    try {
      await interruptible((signal) =>
        rebaseImage(
          {
            path: options.file,
            format: options.format ?? null,
            backing:
              backing === ''
                ? null
                : backingOf({ backing, backingFormat: options['backing-format'] }),
            unsafe: options.unsafe,
            progress: progress.update,
            signal,
          },
          context,
        ),
      );
      return EXIT.success;
    } finally {
      progress.stop();
    }
  },
});
