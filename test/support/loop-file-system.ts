/** File systems in files, mounted: what a host's disk has, without one. Needs root. */
import { mkdir, rm, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { tool } from './file-tools.ts';

export interface LoopFileSystem {
  /** Where it is mounted. */
  readonly directory: string;
  readonly close: () => Promise<void>;
}

const MAKE = { xfs: ['mkfs.xfs', '-q'], ext4: ['mkfs.ext4', '-q', '-F'] } as const;

/** Made below `directory`. `bytes`: XFS takes 300 MiB or more. The loop device goes with the mount. */
export const loopFileSystem = async (
  type: keyof typeof MAKE,
  directory: string,
  bytes: number,
): Promise<LoopFileSystem> => {
  const file = join(directory, `${type}.img`);
  const mountpoint = join(directory, type);
  const [program, ...options] = MAKE[type];
  await writeFile(file, '');
  await truncate(file, bytes);
  await tool(program, [...options, file]);
  await mkdir(mountpoint);
  await tool('mount', ['-o', 'loop', file, mountpoint]);
  const close = async (): Promise<void> => {
    await tool('umount', [mountpoint]);
    await rm(file);
    await rm(mountpoint, { recursive: true });
  };
  return { directory: mountpoint, close };
};
