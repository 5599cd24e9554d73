/**
 * Whether another program has used what the restart journal has taken, of an image that was not locked all the time: after its engine
 * and its supervisor were killed, QEMU may have written it before we come back.
 *
 * Words and refcounts do not tell of it (replay.ts). That program takes free host clusters where we took them, and counts them as
 * we would have; it puts its L2 table where ours is not yet. So all that names a host cluster which the journal counts first is
 * looked for on disk: it may be an entry that the journal has changed, and nothing else. Costs the reading of all tables.
 */
import { viewOf } from '../../src/base/byte-order.ts';
import { guestOffset } from '../../src/base/units.ts';
import { entryHex, hex, isSameEntry, type L2Entry } from './entry.ts';
import { readSnapshotTable } from './snapshot-table.ts';
import type { ImageState } from './state.ts';
import { type L1Table, type NamedTable, TableWalk } from './table-walk.ts';

/** What a journal has left, by place. */
export interface LeftChanges {
  /** Values that a table entry at a host offset had in turn. */
  readonly entries: ReadonlyMap<number, readonly { readonly now: L2Entry }[]>;
  /** Host clusters that were free, and are counted. */
  readonly taken: ReadonlySet<number>;
  /** New tables by offset, and what they were copied from; 0 for zeros. */
  readonly tables: ReadonlyMap<number, number>;
}

/** What names a host cluster that is the journal's; null when nothing does. Errors: EIO, of tables that break the format too. */
export const findForeignUse = async (
  state: ImageState,
  left: LeftChanges,
): Promise<string | null> => {
  const { clusterBytes, metadata } = state;
  for (const cluster of left.taken) {
    if (metadata.isAny(cluster) && !left.tables.has(cluster * clusterBytes))
      return `host cluster ${cluster} holds its metadata`;
  }
  const walk = new TableWalk(state);
  for (const l1 of await allL1(state, walk)) {
    await walk.survey(l1);
    for (const table of walk.tables(l1)) {
      const found = await foreignEntry(state, walk, table, left);
      if (found !== null) return found;
    }
  }
  return null;
};

const allL1 = async (state: ImageState, walk: TableWalk): Promise<readonly L1Table[]> => {
  const { file, lengthBytes, request, snapshotTable } = state;
  const place = { ...snapshotTable, virtualSizeBytes: lengthBytes };
  const { snapshots } = await readSnapshotTable(file, place, request.path);
  const all = [walk.activeL1()];
  for (const snapshot of snapshots) all.push(await walk.snapshotL1(snapshot));
  return all;
};

const foreignEntry = async (
  state: ImageState,
  walk: TableWalk,
  table: NamedTable,
  { entries, taken, tables }: LeftChanges,
): Promise<string | null> => {
  const { clusterBytes, file, map } = state;
  const bytes = await walk.read(table);
  if (bytes === null) return null;
  const source = tables.get(table.offset);
  const isTaken = (clusters: readonly number[]): boolean => clusters.some((c) => taken.has(c));
  const ignore = (): void => undefined;
  if (source === undefined && !isTaken(walk.clustersOf(table, bytes, ignore))) return null;
  const before = new Uint8Array(clusterBytes);
  if (source !== undefined && source !== 0) await file.readClipped(guestOffset(source), before);
  for (let at = 0; at < clusterBytes; at += map.entryBytes) {
    const part = bytes.subarray(at, at + map.entryBytes);
    const known = entries.get(table.offset + at) ?? [];
    const entry = entryOf(part);
    if (known.some(({ now }) => isSameEntry(now, entry))) continue;
    const isOurs =
      source === undefined
        ? !isTaken(walk.clustersOf({ ...table, offset: table.offset + at }, part, ignore))
        : Buffer.compare(part, before.subarray(at, at + map.entryBytes)) === 0;
    if (!isOurs)
      return `table entry at ${hex(table.offset + at)} is ${entryHex(entry.high, entry.low)}`;
  }
  return null;
};

const entryOf = (bytes: Uint8Array): L2Entry => {
  const view = viewOf(bytes);
  const isExtended = bytes.length > 8;
  return {
    high: view.getUint32(0),
    low: view.getUint32(4),
    zeroes: isExtended ? view.getUint32(8) : 0,
    allocated: isExtended ? view.getUint32(12) : 0,
  };
};
