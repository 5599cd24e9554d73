/**
 * A snapshot shown as an image of its own, read-only: the same file with the snapshot's L1 table and size in the place of
 * the active ones.
 *
 * It shares nothing in memory with the instance that writes the image, and needs not: everything that a snapshot names was
 * on disk before it was made, and is never written in place, moved or freed as long as it is there.
 */
import { BlockError, invalidImage } from '../../src/base/block-error.ts';
import { divideUp } from '../../src/base/range.ts';
import type { OpenRequest } from '../../src/block/driver.ts';
import { bytesPerL1Entry, type Qcow2Header } from './header.ts';
import { INCOMPATIBLE } from './layout.ts';
import { readSnapshotTable } from './snapshot-table.ts';
import { checkedL1Place } from './table-walk.ts';

/** The image's header as if the snapshot were its active state. Errors: ENOENT; EIO kind invalid-image. */
export const snapshotHeader = async (
  request: OpenRequest,
  header: Qcow2Header,
  id: string,
): Promise<Qcow2Header> => {
  const { file, path } = request;
  if ((header.incompatible & INCOMPATIBLE.dataFile) !== 0) {
    const message = 'has an external data file, whose content no snapshot keeps';
    throw new BlockError({ kind: 'unsupported', message, path, op: 'open' });
  }
  const { snapshots } = await readSnapshotTable(file, header, path);
  const snapshot = snapshots.find(({ description }) => description.id === id);
  if (snapshot === undefined)
    throw new BlockError({ kind: 'not-found', message: `has no snapshot with id '${id}'`, path });
  const { clusterBytes } = header;
  const { offset, entries } = checkedL1Place(snapshot, { clusterBytes, file, request });
  const { virtualSizeBytes, name } = snapshot.description;
  const needed = divideUp(virtualSizeBytes, bytesPerL1Entry(header));
  if (entries < needed) {
    const what = `its L1 table has ${entries} entries, too few for its size, which needs ${needed}`;
    throw invalidImage(`snapshot '${name}': ${what}`, { path });
  }
  return { ...header, l1Offset: offset, l1Entries: entries, virtualSizeBytes };
};
