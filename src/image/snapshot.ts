/** Internal snapshots of an image that nobody uses: `vdiskfs snapshot`. */
import type { SnapshotDescription } from '../block/image-description.ts';
import type { Node } from '../block/node.ts';
import { snapshotDate, snapshotToApply, snapshotToDelete } from '../block/snapshot-names.ts';
import { imageInfo, type SnapshotInfo, toSnapshotInfo } from './info.ts';
import { type OfflineContext, openImage } from './open.ts';

/** The image and how it is opened. */
export interface SnapshotImage {
  readonly path: string;
  readonly format: string | null;
}

/** Errors: those of `imageInfo`. */
export const listSnapshots = async (
  { path, format }: SnapshotImage,
  context: OfflineContext,
): Promise<readonly SnapshotInfo[]> => (await imageInfo(path, format, context)).snapshots ?? [];

/** Keeps the image as it is under a name, which need not be new. Errors: those of `InternalSnapshots`. */
export const createSnapshot = (
  image: SnapshotImage,
  name: string,
  context: OfflineContext,
): Promise<SnapshotInfo> =>
  change(image, context, (root) =>
    root.withSnapshots('create', (snapshots) =>
      snapshots.create({ name, ...snapshotDate(Date.now()) }),
    ),
  );

/** Puts the image back to a snapshot, by id or name; what it was is lost. */
export const applySnapshot = (
  image: SnapshotImage,
  idOrName: string,
  context: OfflineContext,
): Promise<SnapshotInfo> =>
  change(image, context, (root) =>
    root.withSnapshots('apply', async (snapshots) => {
      const found = snapshotToApply(await snapshots.list(), idOrName);
      await snapshots.apply(found.id);
      return found;
    }),
  );

/** Deletes the first snapshot of a name, and frees what nothing else uses. */
export const deleteSnapshot = (
  image: SnapshotImage,
  name: string,
  context: OfflineContext,
): Promise<SnapshotInfo> =>
  change(image, context, (root) =>
    root.withSnapshots('remove', async (snapshots) => {
      const found = snapshotToDelete(await snapshots.list(), name);
      await snapshots.remove(found.id);
      return found;
    }),
  );

// The image alone: nothing of its backing file is read.
const change = async (
  { path, format }: SnapshotImage,
  context: OfflineContext,
  run: (root: Node) => Promise<SnapshotDescription>,
): Promise<SnapshotInfo> => {
  const how = { writable: true, withoutBacking: true };
  await using image = await openImage(path, format, context, how);
  return toSnapshotInfo(await run(image.root));
};
