/** What stat(2) says of an image's file, in the form that the catalog compares and shows. */
import type { BigIntStats } from 'node:fs';
import { stat } from 'node:fs/promises';
import { toBlockError } from '../../src/base/block-error.ts';
import { canonicalUrl, isUrl } from '../../src/block/remote-url.ts';

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

/** Follows symlinks; of a URL no server is asked. Errors: ENOENT, EACCES and those of the host. */
export const statHostFile = async (path: string): Promise<HostFile> => {
  if (isUrl(path)) return remoteHostFile(path);
  const s = await stat(path, { bigint: true }).catch((error: unknown) => {
    throw toBlockError(error, { op: 'open', path });
  });
  return {
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
