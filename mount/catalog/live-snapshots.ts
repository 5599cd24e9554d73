/**
 * Internal snapshots of an image while the mount shows it: made, applied, deleted, in a drained section of its view.
 *
 * Applying changes content behind the kernel's pages: they are dropped before, so that what was written is in the image,
 * and after, so that nobody reads what was kept meanwhile. It is refused while somebody may write the view, whose next
 * write would go to another content than he has seen. Deleting waits for the snapshot's own view to be released.
 */
import { BlockError } from '../../src/base/block-error.ts';
import type { SnapshotDescription } from '../../src/block/image-description.ts';
import type { InternalSnapshots } from '../../src/block/internal-snapshots.ts';
import { snapshotDate, snapshotToApply } from '../../src/block/snapshot-names.ts';
import type { KernelPages } from '../backend.ts';
import type { ImageEntry } from './image-entry.ts';
import { released } from './release-wait.ts';
import type { SnapshotEntry } from './snapshot-entry.ts';

/** An image of the catalog, and what an operation on it needs beside. */
export interface SnapshotScene {
  readonly image: ImageEntry;
  readonly pages: KernelPages;
  /** The views of its snapshots. */
  readonly views: () => readonly SnapshotEntry[];
  /** Brings the views to what snapshots there are now. */
  readonly rescan: () => Promise<void>;
}

/** Keeps what the view shows now. Errors: EROFS; those of `InternalSnapshots`. */
export const createLiveSnapshot = async (
  scene: SnapshotScene,
  name: string,
): Promise<SnapshotDescription> => {
  const made = await change(scene, 'create', (snapshots) =>
    snapshots.create({ name, ...snapshotDate(Date.now()) }),
  );
  await scene.rescan();
  return made;
};

/** Shows a snapshot, by id or name, in its size. `force`: also when somebody may write the view. Errors: EBUSY, EROFS, ENOENT. */
export const applyLiveSnapshot = async (
  scene: SnapshotScene,
  idOrName: string,
  options: { readonly force: boolean },
): Promise<SnapshotDescription> => {
  const { image, pages } = scene;
  const { nodeId } = image;
  const { invalidate } = pages;
  const isFree = (): boolean =>
    invalidate === null ? image.handles === 0 : !pages.mayBeWritten(nodeId);
  if (!options.force && !(await released(isFree)))
    throw busy(image.name, invalidate === null ? 'is open' : 'may be open for writing');
  await invalidate?.(nodeId);
  try {
    return await change(scene, 'apply', async (snapshots) => {
      const found = snapshotToApply(await snapshots.list(), idOrName);
      await snapshots.apply(found.id);
      return found;
    });
  } finally {
    await invalidate?.(nodeId);
  }
};

/** Deletes a snapshot. Errors: EBUSY while its view is open; EROFS, ENOENT. */
export const deleteLiveSnapshot = async (
  scene: SnapshotScene,
  snapshot: SnapshotDescription,
): Promise<void> => {
  const view = scene.views().find((entry) => entry.snapshot.id === snapshot.id) ?? null;
  if (view !== null && !(await released(() => view.handles === 0)))
    throw busy(view.name, 'is open');
  await view?.retire();
  try {
    await change(scene, 'remove', (snapshots) => snapshots.remove(snapshot.id));
  } catch (error) {
    view?.reinstate();
    throw error;
  }
  await scene.rescan();
};

const change = async <T>(
  { image }: SnapshotScene,
  op: 'create' | 'apply' | 'remove',
  run: (snapshots: InternalSnapshots) => Promise<T>,
): Promise<T> => {
  const { view } = image;
  if (view.readOnlyReason !== null) {
    const message = `the view is read-only: ${view.readOnlyReason}`;
    throw new BlockError({ kind: 'read-only', op: 'snapshot', message });
  }
  await view.open();
  return view.drained(async () => {
    const root = await view.open();
    return image.alone(async () => {
      try {
        return await root.withSnapshots(op, run);
      } finally {
        // Also after a failure, which may have come when the change was made.
        const list = await root.withSnapshots('list', (snapshots) => snapshots.list());
        image.snapshotsChanged(list);
      }
    });
  });
};

const busy = (name: string, what: string): BlockError =>
  new BlockError({
    kind: 'busy',
    op: 'snapshot',
    message: `its view ${name} ${what}`,
    hint: 'close it first',
  });
