/** Loop devices and file systems on them, undone when the test ends. Needs root. */
import { access, mkdir } from 'node:fs/promises';
import { tool } from './file-tools.ts';
import { exists } from './host-files.ts';
import type { Cleanup } from './scratch.ts';
import { run } from './vdiskfs.ts';

export class LoopDevice {
  readonly path: string;
  #attached = true;

  constructor(path: string) {
    this.path = path;
  }

  /** `/dev/loop0` → `loop0`, as /sys/block names it. */
  get name(): string {
    return this.path.slice('/dev/'.length);
  }

  /** The device of a partition, 1 or more; made by hand where the kernel has no parser for the partition table. */
  async partition(number: number): Promise<string> {
    const path = `${this.path}p${number}`;
    if (!(await exists(path))) await tool('partx', ['-u', this.path]);
    await access(path);
    return path;
  }

  async detach(): Promise<void> {
    if (!this.#attached) return;
    this.#attached = false;
    await run('partx', ['-d', this.path]);
    await tool('losetup', ['-d', this.path]);
  }
}

/** `losetup -P` on a free device. */
export const attachLoop = async (
  cleanup: Cleanup,
  file: string,
  options: { readonly directIo: boolean },
): Promise<LoopDevice> => {
  const directIo = `--direct-io=${options.directIo ? 'on' : 'off'}`;
  const path = (await tool('losetup', ['-f', '--show', '-P', directIo, file])).trim();
  const device = new LoopDevice(path);
  cleanup.after(() => device.detach());
  return device;
};

/** Mounts a block device's file system; returns how to unmount it before the test ends. */
export const mountFileSystem = async (
  cleanup: Cleanup,
  device: string,
  directory: string,
): Promise<() => Promise<void>> => {
  await mkdir(directory, { recursive: true });
  await tool('mount', [device, directory]);
  let mounted = true;
  cleanup.after(async () => {
    if (mounted) await run('umount', ['-l', directory]);
  });
  return async () => {
    await tool('umount', [directory]);
    mounted = false;
  };
};
