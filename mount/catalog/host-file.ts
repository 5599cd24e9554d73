/** What stat(2) says of an image's file, in the form that the catalog compares and shows. */
import { type BigIntStats, statSync } from 'node:fs';
import { stat, statfs } from 'node:fs/promises';
import { toBlockError } from '../../src/base/block-error.ts';
import { canonicalUrl, isUrl } from '../../src/block/remote-url.ts';
import { isLocalFileSystem, looks } from '../../src/os/local-file-systems.ts';

export interface HostFile {
  readonly path: string;
  /** `device:inode`: two paths with the same one are the same file. */
  readonly identity: string;
  /**
   * Differs for a file that got the inode number of one that was removed: the time of birth in nanoseconds, where the
   * file system keeps it.
   */
  readonly birth: string;
  /** Changes with the content: size and times. */
  readonly stamp: string;
  /** `remote`: of a URL, whose server nobody has asked; see remote-looks.ts for what it says. */
  readonly kind: 'file' | 'block-device' | 'directory' | 'remote' | 'other';
  readonly sizeBytes: number;
  /** Units of 512 bytes. */
  readonly blocks: number;
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly accessTimeMs: number;
  readonly modifyTimeMs: number;
  readonly changeTimeMs: number;
  /** Type of its file system, of a file of a source directory that lives on this machine. */
  readonly fileSystem?: number | null;
}

/** A file system of this machine. */
export interface LocalFileSystem {
  readonly device: bigint;
  /** Of statfs(2). */
  readonly type: number;
}

/** Owner and mode of views of remote images: whoever mounts, and nobody else, as with a password. */
const REMOTE_MODE = 0o600;
const STARTED_MS = Date.now();

const remoteHostFile = (url: string): HostFile => {
  const path = canonicalUrl(url);
  return {
    path,
    identity: path,
    birth: '',
    stamp: path,
    kind: 'remote',
    sizeBytes: 0,
    blocks: 0,
    mode: REMOTE_MODE,
    uid: process.getuid?.() ?? 0,
    gid: process.getgid?.() ?? 0,
    accessTimeMs: STARTED_MS,
    modifyTimeMs: STARTED_MS,
    changeTimeMs: STARTED_MS,
  };
};

/** The file system of a directory; null where it is not known to live on this machine. */
export const localFileSystemOf = async (directory: string): Promise<LocalFileSystem | null> => {
  try {
    const { type } = await statfs(directory);
    if (!isLocalFileSystem(type)) return null;
    return { device: (await stat(directory, { bigint: true })).dev, type };
  } catch {
    return null;
  }
};

/**
 * Follows symlinks; of a URL no server is asked. `local`: where a path lies that is no symlink. Errors: ENOENT, EACCES and those
 * of the host.
 */
export const statHostFile = async (
  path: string,
  local: LocalFileSystem | null = null,
): Promise<HostFile> => {
  if (isUrl(path)) return remoteHostFile(path);
  const s = await statOf(path, local !== null).catch((error: unknown) => {
    throw toBlockError(error, { op: 'open', path });
  });
  return {
    fileSystem: local !== null && s.dev === local.device ? local.type : null,
    path,
    identity: `${s.dev}:${s.ino}`,
    birth: String(s.birthtimeNs),
    stamp: `${s.dev}:${s.ino}:${s.size}:${s.mtimeNs}:${s.ctimeNs}`,
    kind: kindOf(s),
    sizeBytes: Number(s.size),
    blocks: Number(s.blocks),
    mode: Number(s.mode) & 0o777,
    uid: Number(s.uid),
    gid: Number(s.gid),
    accessTimeMs: milliseconds(s.atimeNs),
    modifyTimeMs: milliseconds(s.mtimeNs),
    changeTimeMs: milliseconds(s.ctimeNs),
  };
};

const statOf = async (path: string, isLocal: boolean): Promise<BigIntStats> =>
  isLocal && looks.mayTry()
    ? looks.timed(() => statSync(path, { bigint: true }))
    : stat(path, { bigint: true });

/** Null when it is gone or cannot be seen. */
export const tryStatHostFile = async (path: string): Promise<HostFile | null> => {
  try {
    return await statHostFile(path);
  } catch {
    return null;
  }
};

const kindOf = (s: BigIntStats): HostFile['kind'] => {
  if (s.isFile()) return 'file';
  if (s.isBlockDevice()) return 'block-device';
  return s.isDirectory() ? 'directory' : 'other';
};

// Through the whole milliseconds first: nanoseconds since 1970 pass 2^53.
const milliseconds = (ns: bigint): number =>
  Number(ns / 1_000_000n) + Number(ns % 1_000_000n) / 1e6;
