/**
 * The backend `fuse-native`: the views of a directory through the npm package of that name, whose callbacks enter the
 * engine directly. It has no data plane. docs/fuse-native.md says what libfuse 2 and the package cannot carry.
 *
 * The package and libfuse.so.2 are loaded when a mount asks for them, not before.
 */
import { execFile } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { promisify } from 'node:util';
import type FuseClass from 'fuse-native';
import type { Signal } from 'fuse-native';
import { BlockError, toBlockError } from '../../src/base/block-error.ts';
import { preloadLibrary } from '../../src/os/shared-library.ts';
import type { Backend, BackendCounters, BackendOptions } from '../backend.ts';
import { mountOptions } from './mount-options.ts';
import { negativeErrno, type ServedOperations, serveOperations } from './operations.ts';

/** How often to look whether the mount is still there, in ms: libfuse 2 ends without telling this package. */
const ENDED_POLL_MS = 200;

export interface FuseNativeOptions extends BackendOptions {
  /** SOURCE, as /proc/mounts shows it. */
  readonly source: string;
}

/**
 * Mounts, and serves until somebody unmounts (umount(8), fusermount). `mountpoint` is a real path. A process that has
 * mounted this way ends by `process.exit`: the package keeps its event loop alive. Errors: EOPNOTSUPP when the package or
 * libfuse.so.2 is missing, EIO when libfuse refuses to mount.
 */
export const mountFuseNative = async (options: FuseNativeOptions): Promise<Backend> => {
  const Fuse = await loadFuse();
  const counters: BackendCounters = {
    requests: 0,
    readBytes: 0,
    writtenBytes: 0,
    faults: 0,
    hits: 0,
    tableBytes: 0,
  };
  const { directory, log, mountpoint } = options;
  const served = serveOperations({ directory, log, counters });
  const fuse = createFuse(Fuse, served, options);
  await new Promise<void>((resolve, reject) => {
    fuse.mount((error) => (error === null ? resolve() : reject(mountError(mountpoint, error))));
  });
  return {
    name: 'fuse-native',
    ended: untilUnmounted(mountpoint),
    pages: { mayBeWritten: () => true, isPassthrough: () => false, invalidate: null },
    holding: null,
    counters: () => ({ ...counters }),
    latencies: () => [],
  };
};

const createFuse = (
  Fuse: typeof FuseClass,
  served: ServedOperations,
  options: FuseNativeOptions,
): FuseClass => {
  /** Adds what the package's own methods lack: mount options, and the size of the caller's buffer in getxattr. */
  class ViewsFuse extends Fuse {
    override _fuseOptions(): string {
      return mountOptions(options);
    }

    override _op_getxattr(signal: Signal, path: string, name: string, value: Buffer): void {
      const answer = async (): Promise<number> => {
        const text = (await served.extendedAttributes(path)).get(name);
        return text === undefined ? negativeErrno('ENODATA') : fill(value, Buffer.from(text));
      };
      signalBytes(signal, value, answer());
    }

    override _op_listxattr(signal: Signal, path: string, list: Buffer): void {
      const answer = async (): Promise<number> => {
        const names = [...(await served.extendedAttributes(path)).keys()];
        return fill(list, Buffer.from(names.map((name) => `${name}\0`).join('')));
      };
      signalBytes(signal, list, answer());
    }
  }
  return new ViewsFuse(options.mountpoint, served.operations, { timeout: false });
};

/** A caller with an empty buffer asks for the size. */
const fill = (buffer: Buffer, value: Buffer): number => {
  if (buffer.length === 0) return value.length;
  if (value.length > buffer.length) return negativeErrno('ERANGE');
  value.copy(buffer);
  return value.length;
};

const signalBytes = (signal: Signal, buffer: Buffer, answer: Promise<number>): void => {
  answer.then(
    (result) => signal(result, buffer.buffer),
    (error: unknown) => signal(negativeErrno(toBlockError(error).errno), buffer.buffer),
  );
};

const loadFuse = async (): Promise<typeof FuseClass> => {
  const require = createRequire(import.meta.url);
  try {
    const bundled = require('fuse-shared-library') as { readonly lib?: string };
    const known = bundled.lib === undefined ? [] : [bundled.lib];
    const library = preloadLibrary(['libfuse.so.2', ...known]);
    if (library === null && process.platform === 'linux')
      throw new Error('libfuse.so.2 is missing');
    return (await import('fuse-native')).default;
  } catch (error) {
    throw new BlockError({
      kind: 'unsupported',
      message: `the backend fuse-native cannot be loaded: ${toBlockError(error).message}`,
      hint: 'install libfuse 2 (Debian package libfuse2), or use --backend kernel',
      cause: error,
    });
  }
};

const mountError = (mountpoint: string, error: Error): BlockError =>
  new BlockError({
    kind: 'io',
    op: 'mount',
    path: mountpoint,
    message: `libfuse refused to mount: ${error.message}`,
    cause: error,
  });

const untilUnmounted = async (mountpoint: string): Promise<void> => {
  while (await isMounted(mountpoint)) {
    await new Promise((resolve) => setTimeout(resolve, ENDED_POLL_MS));
  }
};

/** From the system's own list: a stat of the mountpoint would be a request to ourselves. */
const isMounted = async (mountpoint: string): Promise<boolean> => {
  if (process.platform !== 'linux') {
    const { stdout } = await promisify(execFile)('mount');
    return stdout.includes(` on ${mountpoint} (`);
  }
  const table = await readFile('/proc/self/mountinfo', 'utf8');
  return table.split('\n').some((line) => {
    const [, , , , at] = line.split(' ');
    return at !== undefined && unescaped(at) === mountpoint && line.includes(' fuse.vdiskfs ');
  });
};

/** Spaces, tabs, newlines and backslashes are octal there. */
const unescaped = (text: string): string =>
  text.replace(/\\(\d{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)));
