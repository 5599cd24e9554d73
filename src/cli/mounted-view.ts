/** An image that a vdiskfs mount holds is refused with the name of its view, which can do what the file cannot. */
import { realpath, stat } from 'node:fs/promises';
import { basename, dirname, extname, join } from 'node:path';
import { BlockError } from '../base/block-error.ts';
import { endsWithin } from '../base/bounded-wait.ts';
import type { ImageLocks } from '../block/image-locks.ts';

/** A mount that answers no sooner is not worth a better message. */
const PATIENCE_MS = 1000;

/** The same locks, whose refusal names the view of an image that a mount holds. */
export const namingViews = (locks: ImageLocks): ImageLocks => ({
  acquire: async (path, mode) => {
    try {
      return await locks.acquire(path, mode);
    } catch (error) {
      if (!(error instanceof BlockError) || error.kind !== 'locked') throw error;
      // Loaded here and not before: a lock is refused rarely.
      const { vdiskfsMounts } = await import('../daemon/mount-table.ts');
      const view = await mountedView(path, vdiskfsMounts());
      if (view === null) throw error;
      throw new BlockError({
        kind: 'locked',
        message: 'a vdiskfs mount holds it',
        hint: `use its view ${view}`,
        op: error.op,
        path,
        cause: error,
      });
    }
  },
});

/** The view of an image file in one of these mounts; null when none is found. */
export const mountedView = async (
  path: string,
  mounts: readonly { readonly source: string; readonly mountpoint: string }[],
): Promise<string | null> => {
  const file = await realpath(path).catch(() => null);
  if (file === null) return null;
  for (const { source, mountpoint } of mounts) {
    const real = await realpath(source).catch(() => null);
    if (real !== file && real !== dirname(file)) continue;
    const view = await firstThatExists(viewNames(file).map((name) => join(mountpoint, name)));
    if (view !== null) return view;
  }
  return null;
};

/** `disk.qcow2` is `disk.qcow2.raw` when another image has the short name `disk.raw`, so the long one is looked for first. */
const viewNames = (file: string): string[] => [
  `${basename(file)}.raw`,
  `${basename(file, extname(file))}.raw`,
];

const firstThatExists = async (paths: readonly string[]): Promise<string | null> => {
  for (const path of paths) {
    const found = stat(path).then(
      () => true,
      () => false,
    );
    if ((await endsWithin(found, PATIENCE_MS)) && (await found)) return path;
  }
  return null;
};
