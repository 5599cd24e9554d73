/**
 * Small files that are replaced as a whole: who reads one finds what was there before or what came after it, also after a power
 * cut. Two changes of one file do not run at once: the caller sees to that.
 */
import { constants } from 'node:fs';
import { mkdir, open, rename, rm, rmdir } from 'node:fs/promises';
import { dirname } from 'node:path';
import { BlockError } from './block-error.ts';

const PRIVATE_DIRECTORY = 0o700;
const PRIVATE_FILE = 0o600;
const SMALL_BYTES = 64 << 10;

export interface ChangeOptions {
  /** The change is made for everybody who comes, but a directory could not be synced: a power cut may undo it. */
  readonly notSynced: (error: unknown) => void;
  /** The host is about to be asked for the change itself; what this throws stands in the way of it. */
  readonly making?: () => void;
  /** The change is made; it is not synced yet. */
  readonly made?: () => void;
}

/**
 * What `replaceFile` has written. Nothing else is waited for: a FIFO, for one, would keep its reader for ever. Errors: those of the
 * host (ELOOP for a symbolic link), EINVAL for what is no regular file or has more than 64 KiB.
 */
export const readSmallFile = async (path: string): Promise<string> => {
  const { O_RDONLY, O_NONBLOCK, O_NOFOLLOW } = constants;
  const file = await open(path, O_RDONLY | O_NONBLOCK | O_NOFOLLOW);
  try {
    const found = await file.stat();
    if (!found.isFile()) throw badFile(path, 'is no regular file');
    if (found.size > SMALL_BYTES)
      throw badFile(path, `has ${found.size} bytes, ${SMALL_BYTES} at most`);
    return await file.readFile('utf8');
  } finally {
    await file.close();
  }
};

const badFile = (path: string, message: string): BlockError =>
  new BlockError({ kind: 'bad-request', message, path, op: 'read' });

/**
 * The file has the text when this resolves, and keeps it in a power cut. It is its owner's alone, and so is its directory, which is
 * made when there is none. Errors: those of the host, and the file is what it was.
 */
export const replaceFile = async (
  path: string,
  text: string,
  { notSynced, making, made }: ChangeOptions,
): Promise<void> => {
  const directory = dirname(path);
  const fresh = `${path}.new`;
  const first = await mkdir(directory, { recursive: true, mode: PRIVATE_DIRECTORY });
  try {
    const file = await open(fresh, 'w', PRIVATE_FILE);
    try {
      await file.writeFile(text);
      await file.sync();
    } finally {
      await file.close();
    }
    making?.();
    await rename(fresh, path);
  } catch (error) {
    await rm(fresh, { force: true }).catch(() => undefined);
    throw error;
  }
  made?.();
  await syncDirectory(directory)
    .then(() => syncAbove(directory, first))
    .catch(notSynced);
};

/** The entries of directories that were made, from one up to the first of them; undefined: there were none. */
const syncAbove = async (directory: string, first: string | undefined): Promise<void> => {
  if (first === undefined) return;
  await syncDirectory(dirname(directory));
  if (directory !== first) await syncAbove(dirname(directory), first);
};

/**
 * The file is gone when this resolves, and stays so in a power cut; its directory goes with the last one. Nothing happens where
 * there is none. Errors: those of the host.
 */
export const removeFile = async (
  path: string,
  { notSynced, making, made }: ChangeOptions,
): Promise<void> => {
  const directory = dirname(path);
  making?.();
  await rm(path, { force: true });
  made?.();
  await syncDirectory(directory).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'ENOENT') notSynced(error);
  });
  await rmdir(directory).catch(() => undefined);
};

/** Files that were made, renamed or removed in it stay so in a power cut. Errors: those of the host. */
const syncDirectory = async (directory: string): Promise<void> => {
  const handle = await open(directory, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
};
