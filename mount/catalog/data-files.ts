/** The files besides its own that hold an image's bytes: whether somebody else has changed them. */
import type { DataFile } from './chain-walk.ts';
import { tryStatHostFile } from './host-file.ts';

/** Since they were looked at. */
export const areAsTheyWere = async (files: readonly DataFile[]): Promise<boolean> => {
  for (const file of files) {
    const host = await tryStatHostFile(file.path);
    if (host?.stamp !== file.stamp) return false;
  }
  return true;
};

/** Looked at again, after they were changed by us. */
export const asTheyAre = async (files: readonly DataFile[]): Promise<DataFile[]> => {
  const found: DataFile[] = [];
  for (const file of files) {
    const now = await tryStatHostFile(file.path);
    const isSame = now !== null && now.identity === file.identity;
    const allocatedBytes = isSame ? now.blocks * 512 : file.allocatedBytes;
    found.push(isSame ? { ...file, stamp: now.stamp, allocatedBytes } : file);
  }
  return found;
};
