/** `vdiskfs bitmap`: works on a dirty bitmap that an image keeps. */
import { type BitmapAction, changeBitmap } from '../../image/bitmap.ts';
import { defineCommand, UsageError } from '../command.ts';
import { EXIT } from '../exit-codes.ts';
import { declareFormat, declareOffline, offlineContext } from '../offline.ts';
import { parseSize } from '../size.ts';

export const command = defineCommand({
  declare: (yargs) =>
    declareFormat(declareOffline(yargs))
      .positional('file', { type: 'string', demandOption: true, describe: 'Image' })
      .positional('bitmap', { type: 'string', demandOption: true, describe: 'Name of the bitmap' })
      .option('remove', { type: 'boolean', default: false, describe: 'Remove it' })
      .option('add', { type: 'boolean', default: false, describe: 'Make it; it records' })
      .option('clear', { type: 'boolean', default: false, describe: 'Nothing is dirty' })
      .option('merge', {
        type: 'string',
        array: true,
        default: [] as string[],
        defaultDescription: 'none',
        requiresArg: true,
        describe: 'Add what is dirty in another bitmap (repeatable)',
      })
      .option('enable', { type: 'boolean', default: false, describe: 'Record writes from now on' })
      .option('disable', { type: 'boolean', default: false, describe: 'Record no more' })
      .option('granularity', {
        alias: 'g',
        type: 'string',
        requiresArg: true,
        defaultDescription: "the image's cluster, 4 to 64 KiB",
        describe: 'Of a bitmap that is made: a power of 2 from 512 bytes to 2 GiB',
      })
      .option('source-file', {
        alias: 'b',
        type: 'string',
        requiresArg: true,
        defaultDescription: 'FILE',
        describe: 'Image whose bitmaps are merged',
      })
      .option('source-format', {
        alias: 'F',
        type: 'string',
        requiresArg: true,
        defaultDescription: 'probed',
        describe: 'Its format',
      })
      .example('$0 bitmap --add disk.qcow2 backup', 'Writes are recorded from now on')
      .example('$0 bitmap --merge day1 --clear disk.qcow2 week', 'What the bitmap day1 has alone'),
  run: async (options) => {
    const { 'source-file': sourceFile, 'source-format': sourceFormat, granularity } = options;
    if (granularity !== undefined && !options.add)
      throw new UsageError('is for a bitmap that is made: needs --add', '--granularity');
    if (sourceFile !== undefined && options.merge.length === 0)
      throw new UsageError('is for a merge: needs --merge', '-b');
    if (sourceFormat !== undefined && sourceFile === undefined)
      throw new UsageError('needs -b, the image whose format it is', '-F');
    if (options.enable && options.disable)
      throw new UsageError('and --disable exclude each other', '--enable');
    const actions = actionsOf(options);
    if (actions.length === 0) {
      const what = 'needs --add, --remove, --clear, --merge, --enable or --disable';
      throw new UsageError(what, 'bitmap');
    }
    await changeBitmap(
      {
        path: options.file,
        format: options.format ?? null,
        name: options.bitmap,
        actions,
        mergeFrom:
          sourceFile === undefined ? null : { path: sourceFile, format: sourceFormat ?? null },
      },
      await offlineContext(options),
    );
    return EXIT.success;
  },
});

// Always in this order, in which each has an effect, whatever that of the command line is.
const actionsOf = (options: {
  readonly remove: boolean;
  readonly add: boolean;
  readonly clear: boolean;
  readonly merge: readonly string[];
  readonly enable: boolean;
  readonly disable: boolean;
  readonly granularity?: string | undefined;
}): BitmapAction[] => {
  const actions: BitmapAction[] = [];
  const { granularity } = options;
  if (options.remove) actions.push({ kind: 'remove' });
  if (options.add) {
    const granularityBytes =
      granularity === undefined ? null : parseSize(granularity, '--granularity');
    actions.push({ kind: 'add', granularityBytes });
  }
  if (options.clear) actions.push({ kind: 'clear' });
  for (const source of options.merge) actions.push({ kind: 'merge', source });
  if (options.enable) actions.push({ kind: 'enable' });
  if (options.disable) actions.push({ kind: 'disable' });
  return actions;
};
