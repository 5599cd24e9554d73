/** What the suite of mount tests is run on, and what it can do there. */
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { CleanupStack } from '../../support/cleanup-stack.ts';
import { type Mounted, type MountRequest, mountImages } from '../../support/mounted.ts';
import { type Cleanup, scratchDirectory } from '../../support/scratch.ts';

export interface MountSubject {
  readonly backend: MountRequest['backend'];
  /** Options of every mount. */
  readonly args?: readonly string[];
  readonly capabilities: {
    /** Punch hole, zero range, preallocate. */
    readonly fallocate: boolean;
    /** SEEK_DATA and SEEK_HOLE tell holes. */
    readonly seekHoles: boolean;
    readonly setTimes: boolean;
    /** The kernel answers buffered writes itself and writes them back later. */
    readonly writebackCache: boolean;
    /** The kernel keeps its pages of a view whose file was changed behind the mount's back. */
    readonly keepsCache: boolean;
  };
}

/** The backend `kernel`, as it is on a new kernel without options. */
export const KERNEL: MountSubject = {
  backend: 'kernel',
  capabilities: {
    fallocate: true,
    seekHoles: true,
    setTimes: true,
    writebackCache: true,
    keepsCache: true,
  },
};

/** A directory of images and a mountpoint for it, outside of each other. */
export interface Place {
  readonly root: string;
  readonly images: string;
  /** Undone last first: register what lies in `root` here. */
  readonly cleanup: Cleanup;
  /** A path in the image directory. */
  image(name: string): string;
  mount(args?: readonly string[], sources?: readonly string[]): Promise<Mounted>;
}

export const placeOf = async (t: Cleanup, subject: MountSubject): Promise<Place> => {
  const cleanup = new CleanupStack(t);
  const root = await scratchDirectory(cleanup);
  const images = join(root, 'images');
  await mkdir(images);
  let mounts = 0;
  return {
    root,
    images,
    cleanup,
    image: (name) => join(images, name),
    mount: (args = [], sources = [images]) => {
      const mountpoint = join(root, `mnt${mounts++}`);
      return mountImages(cleanup, {
        backend: subject.backend,
        sources,
        mountpoint,
        args: [...(subject.args ?? []), ...args],
      });
    },
  };
};
