/** `vdiskfs mount`: shows images as flat raw files, and leaves a daemon that serves them. */
import { existsSync, realpathSync, statSync } from 'node:fs';
import { resolve } from 'node:path';
import { BlockError, toBlockError } from '../../base/block-error.ts';
import { createLog, type Log } from '../../base/log.ts';
import { type RemoteCredential, splitCredential } from '../../block/remote-access.ts';
import { isUrl } from '../../block/remote-url.ts';
import { type SecretSource, Secrets } from '../../block/secrets.ts';
import type { DetectZeroes } from '../../block/view.ts';
import type { TakenOver } from '../../daemon/kept-state.ts';
import { startDaemon, stayInForeground } from '../../daemon/launch.ts';
import { flagsOf } from '../../daemon/mount-flags.ts';
import { cleanDeadMount, requireFreeMountpoint } from '../../daemon/mountpoint.ts';
import { prepareRuntime, stateDirectory } from '../../daemon/runtime-directory.ts';
import type { Service } from '../../daemon/service.ts';
import type { SupervisorConfig } from '../../daemon/supervisor.ts';
import { defineCommand, UsageError } from '../command.ts';
import { EXIT } from '../exit-codes.ts';
import {
  declareMountOptions,
  parseCacheSize,
  parseMetrics,
  parseThreads,
} from '../mount-options.ts';
import { print } from '../print.ts';
import { allowedPlaces, tokenFiles } from '../remote-options.ts';
import { parseSecrets } from '../secrets.ts';
import { parseSize } from '../size.ts';

interface Source {
  readonly name: string | null;
  /** Real and absolute, or a URL without user and password. */
  readonly path: string;
  readonly credential: RemoteCredential | null;
}

export const command = defineCommand({
  declare: (yargs) =>
    declareMountOptions(yargs)
      .positional('paths', {
        type: 'string',
        array: true,
        demandOption: true,
        describe:
          'SOURCE... MOUNTPOINT: directories of images, image files or URLs, each optionally as NAME=SOURCE',
      })
      .example('$0 mount images/ /mnt/disks', 'Each image of the directory as NAME.raw')
      .example('$0 mount --read-only root=disk.qcow2 /mnt/disks', 'One image, shown as root.raw')
      .example('$0 mount http://host/disk.qcow2 /mnt/disks', 'An image of a web server')
      .example('$0 images/ /mnt/disks -o ro,allow_other', 'As mount(8) and fstab call it'),
  run: async (options) => {
    const paths = options.paths ?? [];
    const mountpointGiven = paths.at(-1);
    const given = paths.slice(0, -1);
    if (mountpointGiven === undefined || given.length === 0)
      throw new UsageError('a SOURCE and a MOUNTPOINT are needed');
    const sources = given.map(parseSource);
    const allowed = allowedPlaces(options['backing-dir']);
    const log = createLog({ level: options['log-level'] });
    const service = options.foreground ? await serviceOf(log) : null;
    const mountpoint = service?.taken?.mountpoint ?? (await freeMountpoint(mountpointGiven));
    const runtime = prepareRuntime(mountpoint);
    const config: SupervisorConfig = {
      mountpoint,
      sources: sources.map(({ name, path }) => ({ name, path })),
      credentials: [
        ...tokenFiles(options['http-token-file']),
        ...allowed.credentials,
        ...sources.flatMap(({ credential }) => (credential === null ? [] : [credential])),
      ],
      sourceLabel: sources[0]?.path ?? '',
      readOnly: options['read-only'],
      allowOther: options['allow-other'],
      mountFlags: flagsOf(options['mount-flag']),
      threads: parseThreads(options.threads),
      backend: backendFor(options.backend),
      cache: options.cache,
      cacheBytes: parseCacheSize(options['l2-cache-size']),
      format: formatOf(options.format, sources),
      backingDirectories: allowed.places.map((d) => requireDirectory(d)),
      discard: options.discard,
      detectZeroes: detectZeroesFor(options),
      secrets: await secretsFor(parseSecrets(options.secret), sources),
      allowShrink: options['allow-shrink'],
      inactive: inactiveFor(options),
      lock: options.lock,
      passthrough: passthroughFor(options),
      metrics: parseMetrics(options.metrics),
      socketPath: options.socket === undefined ? runtime.socket : resolve(options.socket),
      journalDirectory: runtime.journals,
      stateDirectory:
        options['state-dir'] === undefined
          ? stateDirectory(mountpoint)
          : resolve(options['state-dir']),
      resume: options.resume,
      copyOnRead: options['copy-on-read'],
      recordDirectory: recordFor(options),
      prefetchDirectory: options.prefetch === undefined ? null : resolve(options.prefetch),
      streamSpeed: options.stream === undefined ? null : parseSize(options.stream, '--stream'),
      logLevel: options['log-level'],
    };
    if (service !== null) {
      await stayInForeground(config, service, (warnings) => announce(mountpointGiven, warnings));
      return EXIT.success;
    }
    const { warnings } = await startDaemon(config, runtime.log);
    for (const warning of warnings) process.stderr.write(`vdiskfs: ${warning}\n`);
    return EXIT.success;
  },
});

/** The manager that has started this process, perhaps, and what it has kept of an earlier one. */
const serviceOf = async (log: Log): Promise<{ service: Service; taken: TakenOver | null }> => {
  const [{ Service }, { takeOver }] = await Promise.all([
    import('../../daemon/service.ts'),
    import('../../daemon/kept-state.ts'),
  ]);
  const service = new Service(process.env, log);
  return { service, taken: takeOver(service, log) };
};

/** Of a mount whose daemon is dead, what is left is taken away. */
const freeMountpoint = async (given: string): Promise<string> => {
  await cleanDeadMount(resolve(given));
  return requireFreeMountpoint(given);
};

/** `auto`: the kernel's protocol where it is Linux', else through libfuse. */
const backendFor = (asked: 'auto' | 'kernel' | 'fuse-native'): 'kernel' | 'fuse-native' => {
  if (asked !== 'auto') return asked;
  return process.platform === 'linux' ? 'kernel' : 'fuse-native';
};

/** Errors: usage, where it cannot be had at all. What an older kernel lacks is only left out. */
const passthroughFor = (options: { passthrough: boolean; backend: string }): boolean => {
  if (!options.passthrough) return false;
  if (options.backend === 'fuse-native')
    throw new UsageError('the backend fuse-native does not have it', '--passthrough');
  if (process.getuid?.() !== 0) throw new UsageError('needs root', '--passthrough');
  return true;
};

/** Errors: usage, where images cannot be handed over. */
const inactiveFor = (options: { inactive: boolean; backend: string }): boolean => {
  if (options.inactive && backendFor(options.backend as 'auto') === 'fuse-native')
    throw new UsageError('the backend fuse-native hands no image over', '--inactive');
  return options.inactive;
};

/** Errors: UsageError for what the other options take its sense away. */
const detectZeroesFor = (options: {
  'detect-zeroes': DetectZeroes;
  discard: string;
  passthrough: boolean;
}): DetectZeroes => {
  const detect = options['detect-zeroes'];
  if (detect === 'unmap' && options.discard !== 'unmap')
    throw new UsageError('unmap needs --discard unmap', '--detect-zeroes');
  if (detect !== 'off' && options.passthrough)
    throw new UsageError('the kernel does not look at what it writes directly', '--detect-zeroes');
  return detect;
};

// A source's own name is known here alone. A key that cannot be read is told now, and not when a view is opened.
const secretsFor = async (
  secrets: readonly SecretSource[],
  sources: readonly Source[],
): Promise<readonly SecretSource[]> => {
  await new Secrets(secrets, { keep: false }).check();
  return secrets.map((secret) => {
    const named = sources.find(
      ({ name }) => name !== null && (secret.image === name || secret.image === `${name}.raw`),
    );
    return named === undefined ? secret : { ...secret, image: named.path };
  });
};

/** Errors: usage, where reads are not seen. */
const recordFor = (options: {
  record?: string | undefined;
  passthrough: boolean;
}): string | null => {
  if (options.record === undefined) return null;
  if (options.passthrough) throw new UsageError('sees no reads with --passthrough', '--record');
  return resolve(options.record);
};

const announce = async (mountpoint: string, warnings: readonly string[]): Promise<void> => {
  for (const warning of warnings) process.stderr.write(`vdiskfs: ${warning}\n`);
  await print(`ready ${mountpoint}\n`);
};

/** `NAME=SOURCE` or `SOURCE`; a path that exists is never split. */
const parseSource = (text: string): Source => {
  const named = existsSync(text) ? null : /^(?<name>[^/=]+)=(?<path>.+)$/.exec(text)?.groups;
  const path = named?.['path'] ?? text;
  const name = named?.['name'] ?? null;
  if (isUrl(path)) {
    const { url, credential } = splitCredential(path);
    return { name, path: url, credential };
  }
  if (!existsSync(path))
    throw new BlockError({ kind: 'not-found', message: 'no such file or directory', path });
  return { name, path: realpathSync(path), credential: null };
};

const formatOf = (format: string | undefined, sources: readonly Source[]): string | null => {
  if (format === undefined) return null;
  const [only] = sources;
  const isFile = only !== undefined && (isUrl(only.path) || !statSync(only.path).isDirectory());
  if (sources.length === 1 && isFile) return format;
  throw new UsageError('names the format of a SOURCE that is one file', '--format');
};

const requireDirectory = (path: string): string => {
  if (isUrl(path)) return path;
  try {
    return realpathSync(path);
  } catch (error) {
    throw toBlockError(error, { path, op: 'open' });
  }
};
