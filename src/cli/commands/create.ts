/** `vdiskfs create`: makes an image. */
import { BlockError, toBlockError } from '../../base/block-error.ts';
import type { BackingLink, DriverDescriptor } from '../../block/driver.ts';
import { createImage } from '../../image/create.ts';
import { checkOptions, splitOptions } from '../../image/create-options.ts';
import { defineCommand, UsageError } from '../command.ts';
import { EXIT } from '../exit-codes.ts';
import { declareOffline, offlineContext } from '../offline.ts';
import { declareJson, print, printJson, wantsJson } from '../print.ts';
import { parseSize } from '../size.ts';

export const command = defineCommand({
  declare: (yargs) =>
    declareJson(declareOffline(yargs))
      .positional('file', { type: 'string', demandOption: true, describe: 'Image to make' })
      .positional('size', {
        type: 'string',
        describe: 'Virtual size (64k, 8M, 10G) [default: that of the backing image]',
      })
      .option('format', {
        alias: 'f',
        type: 'string',
        default: 'raw',
        requiresArg: true,
        describe: 'Format of the new image',
      })
      .option('options', {
        alias: 'o',
        type: 'string',
        array: true,
        default: [] as string[],
        requiresArg: true,
        defaultDescription: "the format's own",
        describe: "The format's options, name=value,… (repeatable); -o help lists them",
      })
      .option('backing', {
        alias: 'b',
        type: 'string',
        requiresArg: true,
        defaultDescription: 'none',
        describe: "Backing image, named from the new image's directory",
      })
      .option('backing-format', {
        alias: 'F',
        type: 'string',
        requiresArg: true,
        describe: 'Format of the backing image; needed with -b',
      })
      .option('unsafe', {
        alias: 'u',
        type: 'boolean',
        default: false,
        describe: 'Do not open the backing image; it need not exist',
      })
      .example('$0 create -f qcow2 disk.qcow2 10G', 'An empty disk of 10 GiB')
      .example('$0 create -f qcow2 -b base.img -F raw top.qcow2', 'An overlay as large as its base')
      .example(
        '$0 create -f qcow2 -o cluster_size=2M,lazy_refcounts=on a.qcow2 1T',
        'With options',
      ),
  run: async (options) => {
    const context = await offlineContext(options);
    const descriptor = context.registry.format(options.format);
    if (options.options.some((o) => o === 'help' || o === '?')) {
      await print(describeOptions(descriptor));
      return EXIT.success;
    }
    const settings = gather(options);
    const virtualSize = await createImage(
      {
        path: options.file,
        format: descriptor.name,
        virtualSizeBytes: settings.size === undefined ? null : parseSize(settings.size, 'SIZE'),
        options: asUsage(() => checkOptions(settings.own, descriptor)),
        backing: backingOf(settings),
        withoutOpeningBacking: options.unsafe,
      },
      context,
    );
    if (wantsJson(options)) {
      const created = { filename: options.file, format: descriptor.name };
      await printJson({ ...created, 'virtual-size': virtualSize });
    }
    return EXIT.success;
  },
});

interface Settings {
  readonly size: string | undefined;
  readonly backing: string | undefined;
  readonly backingFormat: string | undefined;
  /** Those of the format. */
  readonly own: readonly (readonly [string, string])[];
}

// qemu-img takes size and backing as -o too, where they stand for the same thing.
const gather = (options: {
  readonly options: readonly string[];
  readonly size?: string | undefined;
  readonly backing?: string | undefined;
  readonly 'backing-format'?: string | undefined;
}): Settings => {
  const given = asUsage(() => options.options.flatMap(splitOptions));
  const common = new Map(given.filter(([name]) => COMMON.has(name)));
  return {
    size: options.size ?? common.get('size'),
    backing: options.backing ?? common.get('backing_file'),
    backingFormat: options['backing-format'] ?? common.get('backing_fmt'),
    own: given.filter(([name]) => !COMMON.has(name)),
  };
};

const COMMON = new Set(['size', 'backing_file', 'backing_fmt']);

const backingOf = (settings: Settings): BackingLink | null => {
  const { backing, backingFormat } = settings;
  if (backing === undefined && backingFormat === undefined) return null;
  if (backing === undefined) throw new UsageError('needs -b, the backing image', '-F');
  if (backingFormat === undefined) {
    throw new UsageError(
      'needs -F, the format of the backing image, which is never probed later',
      '-b',
    );
  }
  return { filename: backing, format: backingFormat };
};

const asUsage = <T>(work: () => T): T => {
  try {
    return work();
  } catch (thrown) {
    if (!(thrown instanceof BlockError)) throw thrown;
    throw new UsageError(toBlockError(thrown).describe(), '-o');
  }
};

const describeOptions = (descriptor: DriverDescriptor): string => {
  const lines = descriptor.createOptions.map((o) => {
    const values = o.choices?.join('|') ?? (o.type === 'boolean' ? 'on|off' : o.type);
    return `  ${`${o.name}=${values}`.padEnd(32)} ${o.help}\n`;
  });
  return `Options of ${descriptor.name}:\n${lines.length === 0 ? '  none\n' : lines.join('')}`;
};
