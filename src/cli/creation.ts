/** What the commands that make an image share: `-o`, and the backing file. */
import type { Argv } from 'yargs';
import { BlockError, toBlockError } from '../base/block-error.ts';
import type { DriverDescriptor } from '../block/driver.ts';
import type { BackingLink } from '../block/image-description.ts';
import { checkOptions, splitOptions } from '../image/create-options.ts';
import { UsageError } from './command.ts';

/** `-o`. */
export const declareCreation = <T>(yargs: Argv<T>) =>
  yargs
    .option('options', {
      alias: 'o',
      type: 'string',
      array: true,
      default: [] as string[],
      requiresArg: true,
      defaultDescription: "the format's own",
      describe: "The format's options, name=value,… (repeatable); -o help lists them",
    })
    .option('backing-format', {
      alias: 'F',
      type: 'string',
      requiresArg: true,
      describe: 'Format of the backing image; needed with it, but for add-cow',
    });

export interface Settings {
  readonly size: string | undefined;
  readonly backing: string | undefined;
  readonly backingFormat: string | undefined;
  /** Those of the format. */
  readonly own: readonly (readonly [string, string])[];
}

// qemu-img takes size and backing as -o too, where they stand for the same thing.
/** Errors: UsageError. */
export const gather = (options: {
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

/** `isProbed`: without a format, the image is looked at once. Errors: UsageError. */
export const backingOf = (
  settings: Pick<Settings, 'backing' | 'backingFormat'>,
  isProbed = false,
): BackingLink | null => {
  const { backing, backingFormat } = settings;
  if (backing === undefined && backingFormat === undefined) return null;
  if (backing === undefined) throw new UsageError('needs -b, the backing image', '-F');
  if (backingFormat === undefined && isProbed) return { filename: backing, format: null };
  if (backingFormat === undefined) {
    throw new UsageError(
      'needs -F, the format of the backing image, which is never probed later',
      '-b',
    );
  }
  return { filename: backing, format: backingFormat };
};

/** The format's own options, checked. Errors: UsageError. */
export const ownOptions = (
  settings: Settings,
  descriptor: DriverDescriptor,
): ReadonlyMap<string, string> => asUsage(() => checkOptions(settings.own, descriptor));

/** `-o help`. */
export const asksForHelp = (options: readonly string[]): boolean =>
  options.some((o) => o === 'help' || o === '?');

const asUsage = <T>(work: () => T): T => {
  try {
    return work();
  } catch (thrown) {
    if (!(thrown instanceof BlockError)) throw thrown;
    throw new UsageError(toBlockError(thrown).describe(), '-o');
  }
};

export const describeOptions = (descriptor: DriverDescriptor): string => {
  const lines = descriptor.createOptions.map((o) => {
    const values = o.choices?.join('|') ?? (o.type === 'boolean' ? 'on|off' : o.type);
    return `  ${`${o.name}=${values}`.padEnd(32)} ${o.help}\n`;
  });
  return `Options of ${descriptor.name}:\n${lines.length === 0 ? '  none\n' : lines.join('')}`;
};
