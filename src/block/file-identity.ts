/** Which file a path stands for: two names of one file are one image. */
import { createHash } from 'node:crypto';
import { stat } from 'node:fs/promises';
import { BlockError, toBlockError } from '../base/block-error.ts';
import { canonicalUrl, isUrl } from './remote-url.ts';

export interface FileIdentity {
  /** Of a remote image its canonical URL, which is its identity; device and inode only stand for it. */
  readonly path: string;
  readonly device: number;
  readonly inode: number;
  /** Of the file, in ms; 0 where nobody knows. The number of an inode is used again when its file is gone. */
  readonly birthMs: number;
}

/** Two paths with the same one are the same file. */
export const keyOf = ({ path, device, inode }: FileIdentity): string =>
  isUrl(path) ? path : `${device}:${inode}`;

/** No device has it. */
const REMOTE_DEVICE = -1;
/** As many as a number holds exactly. */
const HASH_BITS = 52;

const identifyRemote = (url: string): FileIdentity => {
  const path = canonicalUrl(url);
  const hash = createHash('sha256').update(path).digest();
  const inode = Number(hash.readBigUInt64BE() >> BigInt(64 - HASH_BITS));
  return { path, device: REMOTE_DEVICE, inode, birthMs: 0 };
};

/**
 * Of a URL no server is asked. Errors: ENOENT and those of the host; EINVAL for what is neither a regular file, nor a block
 * device, nor a valid URL.
 */
export const identify = async (path: string): Promise<FileIdentity> => {
  if (isUrl(path)) return identifyRemote(path);
  const s = await stat(path).catch((error: unknown) => {
    throw toBlockError(error, { op: 'open', path });
  });
  if (!s.isFile() && !s.isBlockDevice()) {
    throw new BlockError({
      kind: 'bad-request',
      message: 'is neither a file nor a block device',
      path,
    });
  }
  return { path, device: s.dev, inode: s.ino, birthMs: s.birthtimeMs };
};
