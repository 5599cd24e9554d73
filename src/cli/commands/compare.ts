/** `vdiskfs compare`: whether two images show the same bytes. */
import { CompareFailed, type Comparison, compareImages } from '../../image/compare.ts';
import { openImage } from '../../image/open.ts';
import { defineCommand } from '../command.ts';
import { COMPARE_EXIT } from '../exit-codes.ts';
import { describeFailure } from '../failure.ts';
import { declareOffline, offlineContext } from '../offline.ts';
import { declareJson, print, printJson, wantsJson } from '../print.ts';
import { startProgress } from '../progress.ts';

export const command = defineCommand({
  failureExit: COMPARE_EXIT.openFailed,
  usageExit: COMPARE_EXIT.openFailed,
  declare: (yargs) =>
    declareJson(declareOffline(yargs))
      .positional('a', { type: 'string', demandOption: true, describe: 'First image' })
      .positional('b', { type: 'string', demandOption: true, describe: 'Second image' })
      .option('format-a', {
        alias: 'f',
        type: 'string',
        requiresArg: true,
        defaultDescription: 'probed',
        describe: 'Format of the first image',
      })
      .option('format-b', {
        alias: 'F',
        type: 'string',
        requiresArg: true,
        defaultDescription: 'probed',
        describe: 'Format of the second image',
      })
      .option('strict', {
        alias: 's',
        type: 'boolean',
        default: false,
        describe: 'Sizes and allocated ranges must be equal too',
      })
      .option('progress', {
        alias: 'p',
        type: 'boolean',
        defaultDescription: 'on a terminal',
        describe: 'Show a progress bar',
      })
      .epilogue('Exits 0 when identical, 1 when different, 2 and above on errors.')
      .example('$0 compare disk.qcow2 copy.raw', 'A longer tail of zeros counts as equal'),
  run: async (options) => {
    const context = await offlineContext(options);
    await using a = await openImage(options.a, options['format-a'] ?? null, context);
    await using b = await openImage(options.b, options['format-b'] ?? null, context);
    const progress = await startProgress('compare', options.progress);
    try {
      const { strict } = options;
      const found = await compareImages(a.root, b.root, { strict, progress: progress.update });
      progress.stop();
      await (wantsJson(options) ? printJson(found) : print(describe(found)));
      return found.identical ? COMPARE_EXIT.identical : COMPARE_EXIT.different;
    } catch (error) {
      progress.stop();
      if (!(error instanceof CompareFailed)) throw error;
      process.stderr.write(`${describeFailure(error.failure, 'compare')}\n`);
      return error.stage === 'map' ? COMPARE_EXIT.mapFailed : COMPARE_EXIT.readFailed;
    }
  },
});

const describe = (found: Comparison): string => {
  if (found.identical) {
    return found.sizesDiffer
      ? 'Images are identical; the longer one ends in zeros.\n'
      : 'Images are identical.\n';
  }
  const what = {
    content: 'Content mismatch',
    allocation: 'Allocation mismatch',
    size: 'Image size mismatch',
  };
  return `${what[found.reason]} at offset ${found.offset}!\n`;
};
