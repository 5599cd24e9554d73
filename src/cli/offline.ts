/** What the commands that work on image files share: their options, and the drivers and locks that they get. */
import type { Argv } from 'yargs';
import { createLog } from '../base/log.ts';
import type { ImageLocks } from '../block/image-locks.ts';
import { noLocks } from '../block/image-locks.ts';
import { DriverRegistry } from '../block/registry.ts';
import { Secrets } from '../block/secrets.ts';
import type { OfflineContext } from '../image/open.ts';
import { namingViews } from './mounted-view.ts';
import { allowedPlaces, declareRemote, tokenFiles } from './remote-options.ts';
import { declareObjects, declareSecrets, parseSecrets } from './secrets.ts';

export interface OfflineOptions {
  readonly 'backing-dir': readonly string[];
  readonly 'http-token-file': readonly string[];
  readonly lock: 'auto' | 'on' | 'off';
  readonly secret: readonly string[];
  readonly object: readonly string[];
}

/** `--backing-dir`, `--http-token-file`, `--lock`, `--secret` and `--object`. */
export const declareOffline = <T>(yargs: Argv<T>) =>
  declareRemote(declareObjects(declareSecrets(yargs)))
    .option('backing-dir', {
      type: 'string',
      array: true,
      default: [] as string[],
      defaultDescription: "only the image's own directory",
      requiresArg: true,
      describe: 'Allow backing files below this directory or URL too (repeatable)',
    })
    .option('lock', {
      choices: ['auto', 'on', 'off'] as const,
      default: 'auto' as const,
      requiresArg: true,
      describe: "QEMU's image locks: taken where the file system has them, required, not taken",
    });

/** `--format`, of what a command reads. */
export const declareFormat = <T>(
  yargs: Argv<T>,
  describe = 'Format of FILE, which is not probed then',
) =>
  yargs.option('format', {
    alias: 'f',
    type: 'string',
    requiresArg: true,
    describe,
    defaultDescription: 'probed',
  });

/** The drivers are loaded here and not before: `--help` does without them. */
export const offlineContext = async (options: OfflineOptions): Promise<OfflineContext> => {
  const { drivers } = await import('../../drivers/index.ts');
  const { places, credentials } = allowedPlaces(options['backing-dir']);
  return {
    registry: new DriverRegistry(drivers),
    locks: await locksFor(options.lock),
    backingDirectories: places,
    credentials: [...tokenFiles(options['http-token-file']), ...credentials],
    secrets: new Secrets(parseSecrets(options.secret, options.object), { keep: true }),
  };
};

const locksFor = async (mode: OfflineOptions['lock']): Promise<ImageLocks> => {
  if (mode === 'off') return noLocks;
  const { QemuLocks } = await import('../block/qemu-locks.ts');
  return namingViews(new QemuLocks({ require: mode, log: createLog({ level: 'warning' }) }));
};
