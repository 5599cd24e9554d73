/** What the root of a mount shows of the place where its sources lie: attributes, and room. */
import { statfs } from 'node:fs/promises';
import { dirname } from 'node:path';
import { toBlockError } from '../../src/base/block-error.ts';
import { isUrl } from '../../src/block/remote-url.ts';
import type { FileAttributes } from '../directory.ts';
import { remoteRootAttributes, rootAttributesOf } from './attributes.ts';
import { statHostFile } from './host-file.ts';
import type { Source } from './listing.ts';

export interface Space {
  readonly totalBytes: number;
  readonly freeBytes: number;
  readonly availableBytes: number;
}

/** Of the first source's directory. Errors: those of stat(2). */
export const attributesOfPlace = async (sources: readonly Source[]): Promise<FileAttributes> => {
  const path = directoryOf(sources);
  return path === null ? remoteRootAttributes() : rootAttributesOf(await statHostFile(path));
};

/** Of the first source's file system; null when all sources are URLs: servers do not tell. Errors: those of statfs(2). */
export const spaceOfPlace = async (sources: readonly Source[]): Promise<Space | null> => {
  const path = directoryOf(sources);
  if (path === null) return null;
  const s = await statfs(path).catch((error: unknown) => {
    throw toBlockError(error, { op: 'statfs', path });
  });
  return {
    totalBytes: s.blocks * s.bsize,
    freeBytes: s.bfree * s.bsize,
    availableBytes: s.bavail * s.bsize,
  };
};

/** Of the first source on this machine; null when all of them are URLs. */
const directoryOf = (sources: readonly Source[]): string | null => {
  const source = sources.find(({ path }) => !isUrl(path));
  if (source === undefined) return null;
  return source.isDirectory ? source.path : dirname(source.path);
};
