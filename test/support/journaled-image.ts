/** Where an image that has a restart journal lies. */
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { type Cleanup, scratchDirectory } from './scratch.ts';

export interface JournaledImage {
  readonly directory: string;
  /** Of the image; nothing lies there yet. */
  readonly path: string;
  /** An empty directory. */
  readonly journals: string;
}

/** `name`: of the image file. */
export const journaledImage = async (t: Cleanup, name: string): Promise<JournaledImage> => {
  const directory = await scratchDirectory(t);
  const [path, journals] = [join(directory, name), join(directory, 'journals')];
  await mkdir(journals);
  return { directory, path, journals };
};
