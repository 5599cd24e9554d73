/** File systems in files, mounted: what a host's disk has, and what a power cut leaves of it, without one. Needs root. */
import { mkdir, rm, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { tool } from './file-tools.ts';

export interface LoopFileSystem {
  /** Where it is mounted. */
  readonly directory: string;
  /**
   * A power cut now: what the disk has, without what only the kernel has. Where that is mounted, as after the next boot; the file
   * system itself goes on. Writes that the disk gets meanwhile may be in it or not.
   */
  readonly cut: () => Promise<string>;
  /** Unmounts it, and what cuts have left. */
  readonly close: () => Promise<void>;
}

const MAKE = { xfs: ['mkfs.xfs', '-q'], ext4: ['mkfs.ext4', '-q', '-F'] } as const;

/**
 * Made below `directory`. `bytes`: XFS takes 300 MiB or more. `mountpoint`: a directory that stays when it is closed. The loop
 * device goes with the mount.
 */
export const loopFileSystem = async (
  type: keyof typeof MAKE,
  directory: string,
  bytes: number,
  mountpoint: string | null = null,
): Promise<LoopFileSystem> => {
  const file = join(directory, `${type}.img`);
  const [program, ...options] = MAKE[type];
  await writeFile(file, '');
  await truncate(file, bytes);
  await tool(program, [...options, file]);
  const mounted: string[] = [];
  const mount = async (image: string, at: string): Promise<void> => {
    await mkdir(at, { recursive: true });
    // XFS: a copy has the name of what it was copied from.
    await tool('mount', ['-o', type === 'xfs' ? 'loop,nouuid' : 'loop', image, at]);
    mounted.push(at);
  };
  const main = mountpoint ?? join(directory, type);
  await mount(file, main);
  const cut = async (): Promise<string> => {
    const name = `${type}-cut${mounted.length}`;
    const [copy, after] = [join(directory, `${name}.img`), join(directory, name)];
    await tool('cp', ['--sparse=always', file, copy]);
    await mount(copy, after);
    return after;
  };
  const close = async (): Promise<void> => {
    for (const at of mounted) {
      await tool('umount', [at]);
      if (at !== mountpoint) await rm(at, { recursive: true });
    }
    for (const at of mounted) await rm(at === main ? file : `${at}.img`);
  };
  return { directory: main, cut, close };
};
