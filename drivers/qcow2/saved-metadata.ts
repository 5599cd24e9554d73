/**
 * What snapshots keep of the image's metadata: the snapshot table, their L1 tables, and the L2 tables that these name. Known
 * before an image is written, so that no write lands there (metadata-clusters.ts).
 */
import { BlockError } from '../../src/base/block-error.ts';
import { viewOf } from '../../src/base/byte-order.ts';
import { divideUp, isAligned } from '../../src/base/range.ts';
import {
  clusterOfHostOffset,
  guestOffset,
  hostCluster,
  hostOffset,
  hostOffsetOfCluster,
} from '../../src/base/units.ts';
import { corruption } from './corruption.ts';
import { entryOffset } from './entry.ts';
import { ENTRY_BYTES } from './layout.ts';
import { readSnapshotTable, type Snapshot } from './snapshot-table.ts';
import type { ImageState } from './state.ts';
import { checkedL1Place } from './table-walk.ts';

/** L1 tables are read up to so many bytes together; the L2 tables of further snapshots are not known then. */
const MAX_L1_BYTES_READ = 64 << 20;

type Image = Pick<
  ImageState,
  'clusterBytes' | 'file' | 'lengthBytes' | 'metadata' | 'request' | 'snapshotTable'
>;

/**
 * Reads it anew. Nothing is written meanwhile. Snapshots that cannot be followed are left out, and told: nothing of theirs
 * is sound anyway. Never throws.
 */
export const readSavedMetadata = async (image: Image): Promise<void> => {
  const { metadata, request } = image;
  metadata.clearSaved();
  if (image.snapshotTable.snapshots === 0) return;
  const tell = (error: unknown): void => {
    const reason = error instanceof BlockError ? error.describe() : String(error);
    request.log.warning(request.path, `writes are not checked against a snapshot: ${reason}`);
  };
  try {
    let left = MAX_L1_BYTES_READ;
    for (const snapshot of await readTable(image)) {
      await readL1(image, snapshot, left).then((bytes) => {
        left -= bytes;
      }, tell);
    }
  } catch (error) {
    tell(error);
  }
};

/** Errors: kind invalid-image, which marks the image, when two of its tables, or one and a snapshot's, lie in one place. */
export const refuseConflict = ({ metadata, clusterBytes, request }: Image): void => {
  const cluster = metadata.conflict();
  if (cluster === null) return;
  const text = `two structures of its metadata lie in host cluster ${cluster}`;
  throw corruption(text, {
    path: request.path,
    offset: hostOffsetOfCluster(cluster, clusterBytes),
  });
};

const readTable = async (image: Image): Promise<readonly Snapshot[]> => {
  const { file, request, snapshotTable, lengthBytes } = image;
  const place = { ...snapshotTable, virtualSizeBytes: lengthBytes };
  const table = await readSnapshotTable(file, place, request.path);
  addRun(image, place.snapshotsOffset, table.lengthBytes);
  return table.snapshots;
};

/** Returns how many bytes it has read. */
const readL1 = async (image: Image, snapshot: Snapshot, most: number): Promise<number> => {
  const { file, clusterBytes, metadata } = image;
  const { offset, entries } = checkedL1Place(snapshot, image);
  const bytes = new Uint8Array(entries * ENTRY_BYTES);
  addRun(image, offset, bytes.length);
  if (bytes.length === 0 || bytes.length > most) return 0;
  await file.readClipped(guestOffset(offset), bytes);
  const view = viewOf(bytes);
  for (let at = 0; at < bytes.length; at += ENTRY_BYTES) {
    const table = entryOffset(view.getUint32(at), view.getUint32(at + 4));
    if (table === 0 || !isAligned(table, clusterBytes) || table >= file.lengthBytes) continue;
    metadata.addSaved(hostCluster(table / clusterBytes), 'table');
  }
  return bytes.length;
};

const addRun = ({ metadata, clusterBytes }: Image, offset: number, lengthBytes: number): void => {
  const clusters = divideUp(lengthBytes, clusterBytes);
  const first = clusterOfHostOffset(hostOffset(offset), clusterBytes);
  for (let i = 0; i < clusters; i++) metadata.addSaved(hostCluster(first + i), 'other');
};
