/** `vdiskfs bitmap`: works on a dirty bitmap that an image keeps, also of a view while it is used. */
import { BlockError } from '../../base/block-error.ts';
import { QmpError } from '../../control/client.ts';
import { isView } from '../../daemon/mount-table.ts';
import { type BitmapAction, changeBitmap } from '../../image/bitmap.ts';
import { defineCommand, UsageError } from '../command.ts';
import { EXIT } from '../exit-codes.ts';
import { declareFormat, declareOffline, offlineContext } from '../offline.ts';
import { parseSize } from '../size.ts';

export const command = defineCommand({
  declare: (yargs) =>
    declareFormat(declareOffline(yargs))
      .positional('file', {
        type: 'string',
        demandOption: true,
        describe: 'Image, or the path of a view in a mount',
      })
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
        describe: 'Image whose bitmaps are merged; for a view, another view of the same mount',
      })
      .option('source-format', {
        alias: 'F',
        type: 'string',
        requiresArg: true,
        defaultDescription: 'probed',
        describe: 'Its format',
      })
      .example('$0 bitmap --add disk.qcow2 backup', 'Writes are recorded from now on')
      .example('$0 bitmap --merge day1 --clear disk.qcow2 week', 'What the bitmap day1 has alone')
      .example('$0 bitmap --add /mnt/disks/vm.raw backup', 'The same of a disk that is in use'),
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
    if (await isView(options.file)) {
      await changeOnView(options.file, { name: options.bitmap, actions, source: sourceFile });
      return EXIT.success;
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

interface ViewChange {
  readonly name: string;
  readonly actions: readonly BitmapAction[];
  /** Path of the view whose bitmaps are merged; the same one when it is not given. */
  readonly source: string | undefined;
}

/** What came before an action that fails is done. Errors: EINVAL with what the mount says; those of its socket. */
const changeOnView = async (path: string, { name, actions, source }: ViewChange): Promise<void> => {
  const { connectToDevice } = await import('../mounted-device.ts');
  const { client, device, mountpoint } = await connectToDevice(path);
  try {
    const owner = source === undefined ? null : await deviceBeside(source, mountpoint);
    for (const action of actions) {
      const [command, given] = requestOf(action, owner);
      const target = action.kind === 'merge' ? { target: name } : { name };
      await client.execute(command, { node: device, ...target, ...given });
    }
  } catch (error) {
    if (!(error instanceof QmpError)) throw error;
    throw new BlockError({ kind: 'bad-request', message: error.message, path, op: 'bitmap' });
  } finally {
    client.close();
  }
};

/** The name of another view of a mount. Errors: EINVAL for what is none. */
const deviceBeside = async (path: string, mountpoint: string): Promise<string> => {
  const { connectToDevice } = await import('../mounted-device.ts');
  const other = await connectToDevice(path);
  other.client.close();
  if (other.mountpoint === mountpoint) return other.device;
  const message = 'is a view of another mount: bitmaps of one mount are merged';
  throw new BlockError({ kind: 'bad-request', message, path, op: 'bitmap' });
};

/** `owner`: the device that has the source of a merge; null: the target's own. */
const requestOf = (
  action: BitmapAction,
  owner: string | null,
): readonly [command: string, given: Readonly<Record<string, unknown>>] => {
  const command = `block-dirty-bitmap-${action.kind}`;
  switch (action.kind) {
    case 'add': {
      const { granularityBytes } = action;
      const granularity = granularityBytes === null ? {} : { granularity: granularityBytes };
      return [command, { persistent: true, ...granularity }];
    }
    case 'merge': {
      const { source } = action;
      return [command, { bitmaps: [owner === null ? source : { node: owner, name: source }] }];
    }
    default:
      return [command, {}];
  }
};

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
