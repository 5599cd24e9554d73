/**
 * The checkpoint: brings the bits that were set in memory to the file. What a bit stands for is on disk before it:
 *
 *     0  bytes of the header that are owed (src/block/header-changes.ts) are put back; sync. Without any, nothing
 *     1  the bits as they are now; the journal begins anew
 *     2  the image file is flushed: the guest's bytes, and what was copied beside them
 *     3  the tables are written, and the file is flushed
 *     4  the journal forgets what it had before 0; nothing of that is owed any more
 *
 * A cut before 3 leaves the old bits, and what was written under them is not read. Inside 3 each sector of bits is old or
 * new, and every set bit has its bytes on disk.
 */
import type { TableSnapshot } from '../../src/block/table-cache.ts';
import { bitmapBytesOf } from './bitmap.ts';
import type { ImageState } from './state.ts';

/** Errors: EIO, ENOSPC; what was dirty stays so. */
export const runCheckpoint = async (state: ImageState): Promise<void> => {
  const { journaled, bitmap, headerChanges } = state;
  journaled.begin();
  const { owed } = headerChanges;
  const snapshots = bitmap.snapshotDirty();
  try {
    await headerChanges.putBack(owed);
    await bringToDisk(state, snapshots);
  } catch (error) {
    journaled.fail();
    throw error;
  }
  journaled.end();
  headerChanges.forget(owed);
};

const bringToDisk = async (
  state: ImageState,
  snapshots: readonly TableSnapshot[],
): Promise<void> => {
  const { bitmap, image, file } = state;
  await image.flush();
  if (snapshots.length > 0) {
    const clusters = Math.max(state.clusters, state.plannedClusters ?? 0);
    // One that ends early is made whole.
    const bytes = state.header.headerBytes + bitmapBytesOf(clusters, state.clusterBytes);
    if (file.lengthBytes < bytes) await file.resize(bytes);
    for (const snapshot of snapshots) await bitmap.write(snapshot, clusters);
    await file.flush();
    bitmap.written(snapshots);
  }
};
