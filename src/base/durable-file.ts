/**
 * Small files that are replaced as a whole: who reads one finds what was there before or what came after it, also after a power
 * cut. Two changes of one file do not run at once: the caller sees to that.
 */
import { mkdir, open, rename, rm, rmdir } from 'node:fs/promises';
import { dirname } from 'node:path';

const PRIVATE_DIRECTORY = 0o700;
const PRIVATE_FILE = 0o600;

export interface ChangeOptions {
  /** The change is made for everybody who comes, but the directory could not be synced: a power cut may undo it. */
  readonly notSynced: (error: unknown) => void;
}

/**
 * The file has the text when this resolves, and keeps it in a power cut. It is its owner's alone, and so is its directory, which is
 * made when there is none. Errors: those of the host, and the file is what it was.
 */
export const replaceFile = async (
  path: string,
  text: string,
  { notSynced }: ChangeOptions,
): Promise<void> => {
  const directory = dirname(path);
  const fresh = `${path}.new`;
  await mkdir(directory, { recursive: true, mode: PRIVATE_DIRECTORY });
  try {
    const file = await open(fresh, 'w', PRIVATE_FILE);
    try {
      await file.writeFile(text);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(fresh, path);
  } catch (error) {
    await rm(fresh, { force: true }).catch(() => undefined);
    throw error;
  }
  await syncDirectory(directory).catch(notSynced);
};

/**
 * The file is gone when this resolves, and stays so in a power cut; its directory goes with the last one. Nothing happens where
 * there is none. Errors: those of the host.
 */
export const removeFile = async (path: string, { notSynced }: ChangeOptions): Promise<void> => {
  const directory = dirname(path);
  await rm(path, { force: true });
  await syncDirectory(directory).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'ENOENT') notSynced(error);
  });
  await rmdir(directory).catch(() => undefined);
};

/** Files that were made, renamed or removed in it stay so in a power cut. Errors: those of the host. */
export const syncDirectory = async (directory: string): Promise<void> => {
  const handle = await open(directory, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
};
