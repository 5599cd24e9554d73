/**
 * The options of `vdiskfs mount`, in both spellings: `--name value`, and `-o name=value,…` as mount(8) and fstab pass
 * them. The one list of them.
 */
import { availableParallelism } from 'node:os';
import type { Argv } from 'yargs';
import type { MetricsAddress } from '../daemon/metrics-server.ts';
import { isMountFlag } from '../daemon/mount-flags.ts';
import { UsageError } from './command.ts';
import { isIgnored, optionsOf } from './option-list.ts';
import { declareRemote } from './remote-options.ts';
import { declareSecrets } from './secrets.ts';
import { parseSize } from './size.ts';

const BOOLEANS = [
  'read-only',
  'allow-other',
  'allow-shrink',
  'passthrough',
  'copy-on-read',
  'no-resume',
  'inactive',
] as const;
const VALUES = [
  'threads',
  'backend',
  'cache',
  'l2-cache-size',
  'format',
  'socket',
  'state-dir',
  'record',
  'prefetch',
  'lock',
  'discard',
  'detect-zeroes',
  'log-level',
  'metrics',
] as const;

/** May be given several times. */
const REPEATABLE = ['backing-dir', 'secret', 'http-token-file'] as const;

const MIN_THREADS = 1;
const MAX_THREADS = 64;
/** Less holds no slice of each table of a deep chain. */
const MIN_CACHE_BYTES = 64 << 10;

export const declareMountOptions = <T>(yargs: Argv<T>) =>
  declareBackground(declareRemote(declareImageOptions(yargs)))
    .option('foreground', {
      alias: 'f',
      type: 'boolean',
      default: false,
      describe: 'Stay, log to stderr, print "ready MOUNTPOINT" when usable',
    })
    .option('read-only', { type: 'boolean', default: false, describe: 'No writes reach any image' })
    .option('allow-other', {
      type: 'boolean',
      default: false,
      describe: "Other users may enter, checked against the image file's own owner and mode",
    })
    .option('passthrough', {
      type: 'boolean',
      default: false,
      describe: 'Let the kernel read and write raw images directly (root, Linux 6.9)',
    })
    .option('threads', {
      type: 'string',
      requiresArg: true,
      describe: 'Workers that read and write',
      defaultDescription: '2 to 4 by core count',
    })
    .option('backend', {
      choices: ['auto', 'kernel', 'fuse-native'] as const,
      default: 'auto' as const,
      requiresArg: true,
      describe: 'How FUSE is spoken',
    })
    .option('mount-flag', {
      type: 'string',
      array: true,
      default: [] as string[],
      requiresArg: true,
      hidden: true,
      describe: 'What -o noexec, noatime and their like stand for',
    })
    .option('options', {
      alias: 'o',
      type: 'string',
      array: true,
      default: [] as string[],
      requiresArg: true,
      describe: 'The same options as mount(8) spells them: -o ro,allow_other,threads=4',
    });

/** What goes on behind the guest's back. */
const declareBackground = <T>(yargs: Argv<T>) =>
  yargs
    .option('copy-on-read', {
      type: 'boolean',
      default: false,
      describe: 'Keep what is read from a backing image',
    })
    .option('stream', {
      type: 'string',
      describe:
        'Populate every image that has a backing image, at so many bytes a second: --stream, --stream=20M',
      defaultDescription: 'off',
    })
    .option('record', {
      type: 'string',
      requiresArg: true,
      describe: 'Write into this directory what guests read, in order',
      defaultDescription: 'off',
    })
    .option('prefetch', {
      type: 'string',
      requiresArg: true,
      describe: 'Fetch first what the records of this directory say that guests read',
      defaultDescription: 'off',
    })
    .option('state-dir', {
      type: 'string',
      requiresArg: true,
      describe: 'Where jobs keep what they need to go on after a restart',
      defaultDescription: 'user state directory',
    })
    .option('resume', {
      type: 'boolean',
      default: true,
      describe: 'Take up jobs that an earlier mount of the same images left (--no-resume: do not)',
    });

/** What concerns the images. */
const declareImageOptions = <T>(yargs: Argv<T>) =>
  declareSecrets(yargs)
    .option('cache', {
      choices: ['writeback', 'none', 'unsafe'] as const,
      default: 'writeback' as const,
      requiresArg: true,
      describe:
        'Host cache of the image files: page cache with real flushes; none (O_DIRECT); page cache with flushes ignored',
    })
    .option('l2-cache-size', {
      type: 'string',
      default: '32M',
      requiresArg: true,
      describe: 'Memory for mapping metadata of an image',
    })
    .option('format', {
      type: 'string',
      requiresArg: true,
      describe: 'Format of SOURCE when it is one file; never probed then',
      defaultDescription: 'probed',
    })
    .option('backing-dir', {
      type: 'string',
      array: true,
      default: [] as string[],
      requiresArg: true,
      describe: 'Allow backing and data files below this directory or URL too (repeatable)',
      defaultDescription: 'only below SOURCE',
    })
    .option('socket', {
      type: 'string',
      requiresArg: true,
      describe: 'Control socket',
      defaultDescription: 'in the runtime directory',
    })
    .option('lock', {
      choices: ['auto', 'on', 'off'] as const,
      default: 'auto' as const,
      requiresArg: true,
      describe: "QEMU's image locks: taken where the file system has them, required, not taken",
    })
    .option('discard', {
      choices: ['unmap', 'ignore'] as const,
      default: 'unmap' as const,
      requiresArg: true,
      describe: 'What punched ranges do to the image',
    })
    .option('detect-zeroes', {
      choices: ['off', 'on', 'unmap'] as const,
      default: 'off' as const,
      requiresArg: true,
      describe: 'What a write of zeros is: data, a write-zeroes, one that gives its space back',
    })
    .option('inactive', {
      type: 'boolean',
      default: false,
      describe: "Images are another host's, neither locked nor opened, until they are activated",
    })
    .option('allow-shrink', {
      type: 'boolean',
      default: false,
      describe: 'Truncating to a smaller size shrinks the disk',
    })
    .option('metrics', {
      type: 'string',
      requiresArg: true,
      describe: '[HOST:]PORT to serve Prometheus text at, on loopback',
      defaultDescription: 'off',
    })
    .option('log-level', {
      choices: ['error', 'warning', 'info', 'debug'] as const,
      default: 'info' as const,
      requiresArg: true,
      describe: 'Least urgent lines of the log',
    });

/**
 * `-o a,b=c` lists as words of a command line. `sloppy`: what is unknown is left out. Errors: UsageError for an unknown
 * word.
 */
export const wordsOfMountOptions = (
  lists: readonly string[],
  { sloppy }: { readonly sloppy: boolean } = { sloppy: false },
): string[] => {
  const words: string[] = [];
  let readOnly = false;
  for (const option of optionsOf(lists)) {
    const { name, value } = option;
    if (name === 'ro' || name === 'rw') readOnly = name === 'ro';
    else if (value === null && isMountFlag(name)) words.push('--mount-flag', name);
    else if (name === 'stream') words.push(value === null ? '--stream' : `--stream=${value}`);
    else if (isOneOf(BOOLEANS, name) && value === null) words.push(`--${name}`);
    else if ((isOneOf(VALUES, name) || isOneOf(REPEATABLE, name)) && value !== null)
      words.push(`--${name}=${value}`);
    else if (!isIgnored(option) && !sloppy)
      throw new UsageError('is no mount option', `-o ${option.text}`);
  }
  return readOnly ? [...words, '--read-only'] : words;
};

const isOneOf = (names: readonly string[], name: string): boolean => names.includes(name);

/**
 * A line of `mount` in which each `-o list` is spelled out as the options it stands for, so that both spellings meet the
 * same checks. Errors: UsageError.
 */
export const expandMountLine = (line: readonly string[]): readonly string[] => {
  const words: string[] = [];
  for (let i = 0; i < line.length; i++) {
    const word = line[i] ?? '';
    const inline = /^(?:-o=?|--options=)(?<list>.+)$/.exec(word)?.groups?.['list'];
    if (inline !== undefined) words.push(...wordsOfMountOptions([inline]));
    else if (/^(?:-o|--options)$/.test(word) && i + 1 < line.length)
      words.push(...wordsOfMountOptions([line[++i] ?? '']));
    else words.push(word);
  }
  // Its value may be left out: it never takes the next word.
  return words.map((word) => (word === '--stream' ? '--stream=0' : word));
};

/** Errors: UsageError. */
export const parseThreads = (text: string | undefined): number => {
  if (text === undefined) return Math.min(4, Math.max(2, availableParallelism()));
  const threads = Number(text);
  if (Number.isInteger(threads) && threads >= MIN_THREADS && threads <= MAX_THREADS) return threads;
  throw new UsageError(
    `'${text}' is not a number from ${MIN_THREADS} to ${MAX_THREADS}`,
    '--threads',
  );
};

/** Errors: UsageError. */
export const parseCacheSize = (text: string): number => {
  const bytes = parseSize(text, '--l2-cache-size');
  if (bytes >= MIN_CACHE_BYTES) return bytes;
  throw new UsageError(`'${text}' is less than 64k`, '--l2-cache-size');
};

/** `[HOST:]PORT`, null when it is not asked for. Errors: UsageError, also for a host that is not this machine. */
export const parseMetrics = (text: string | undefined): MetricsAddress | null => {
  if (text === undefined) return null;
  const parts = /^(?:(?<host>[^:]+|\[[0-9a-f:]+\]):)?(?<port>\d{1,5})$/i.exec(text)?.groups;
  const port = Number(parts?.['port']);
  const host = (parts?.['host'] ?? '127.0.0.1').replace(/^\[|\]$/g, '');
  if (!(port >= 1 && port <= 65_535))
    throw new UsageError(`'${text}' is no [HOST:]PORT`, '--metrics');
  if (/^127(?:\.\d{1,3}){3}$|^::1$|^localhost$/.test(host)) return { host, port };
  throw new UsageError(`'${host}' is not loopback: metrics name every image`, '--metrics');
};
