/** File systems in memory, mounted: a tmpfs that is soon full, a ramfs that has no fallocate(2). Needs root. */
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { CleanupStack } from './cleanup-stack.ts';
import { tool } from './file-tools.ts';
import { type Cleanup, scratchDirectory } from './scratch.ts';

const mounted = async (t: Cleanup, options: readonly string[]): Promise<string> => {
  const stack = new CleanupStack(t);
  const directory = join(await scratchDirectory(stack), 'memory');
  await mkdir(directory);
  await tool('mount', [...options, 'none', directory]);
  // What a test that fails has left open goes with its process.
  stack.after(async () => void (await tool('umount', ['-l', directory])));
  return directory;
};

/** Where it is mounted until `t` ends. `size`: as mount(8) takes it. */
export const tmpfs = (t: Cleanup, size: string): Promise<string> =>
  mounted(t, ['-t', 'tmpfs', '-o', `size=${size}`]);

/** As `tmpfs`; it is never full, so little may be written there. */
export const ramfs = (t: Cleanup): Promise<string> => mounted(t, ['-t', 'ramfs']);
