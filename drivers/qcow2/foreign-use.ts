/**
 * Whether another program has used what the restart journal has taken, of an image that was not locked all the time: after its engine
 * and its supervisor were killed, QEMU may have written it before we come back.
 *
 * Words and refcounts do not tell of it (replay.ts). That program takes free host clusters where we took them, and counts them as
 * we would have; it puts its L2 table where ours is not yet. So every table on disk is searched for
 * entries that name a host cluster which was free when the journal began or during it. Such an entry must be one that the journal has
 * changed. Costs the reading of all tables, once each.
 * What is written in place leaves no trace: where the guest had discarded the cluster, that goes with it.
 */
import { BlockError } from '../../src/base/block-error.ts';
import { viewOf } from '../../src/base/byte-order.ts';
import { guestOffset, type HostCluster, hostOffsetOfCluster } from '../../src/base/units.ts';
import { entryHex, hex, isSameEntry, type L2Entry } from './entry.ts';
import { readSnapshotTable } from './snapshot-table.ts';
import type { ImageState } from './state.ts';
import { type L1Table, type NamedTable, TableWalk } from './table-walk.ts';

/** What a journal has left, by place. */
export interface LeftChanges {
  /** Values that a table entry at a host offset had in turn. */
  readonly entries: ReadonlyMap<number, readonly { readonly now: L2Entry }[]>;
  /** Host clusters that were free at some time: nobody names them but who took them then. */
  readonly taken: ReadonlySet<HostCluster>;
  /** New tables by offset, and what they were copied from; 0 for zeros. */
  readonly tables: ReadonlyMap<number, number>;
}

/**
 * How another program shows in the image; null when it does not. Errors: EIO; kind invalid-image of tables that break the format.
 */
export const findForeignUse = async (
  state: ImageState,
  left: LeftChanges,
): Promise<string | null> => {
  const { clusterBytes, metadata } = state;
  for (const cluster of left.taken) {
    if (metadata.isAny(cluster) && !left.tables.has(hostOffsetOfCluster(cluster, clusterBytes)))
      return `host cluster ${cluster} holds its metadata`;
  }
  const walk = new TableWalk(state);
  // Snapshots share most of their tables.
  const seen = new Set<number>();
  const found = await foreignIn(walk.activeL1(), { state, walk, left, seen });
  if (found !== null) return found;
  for await (const l1 of snapshotL1(state, walk)) {
    const foreign = await foreignIn(l1, { state, walk, left, seen }).catch(orNothingToFollow);
    if (foreign !== null) return foreign;
  }
  return null;
};

interface Walked {
  readonly state: ImageState;
  readonly walk: TableWalk;
  readonly left: LeftChanges;
  /** Offsets of tables. */
  readonly seen: Set<number>;
}

const foreignIn = async (
  l1: L1Table,
  { state, walk, left, seen }: Walked,
): Promise<string | null> => {
  await walk.survey(l1, seen);
  for (const table of walk.tables(l1)) {
    if (seen.has(table.offset)) continue;
    seen.add(table.offset);
    const found = await foreignEntry(state, walk, table, left);
    if (found !== null) return found;
  }
  return null;
};

/** A snapshot that was damaged before says nothing. */
const orNothingToFollow = (error: unknown): null => {
  if (error instanceof BlockError && error.kind === 'invalid-image') return null;
  throw error;
};

/** One in memory at a time. */
async function* snapshotL1(state: ImageState, walk: TableWalk): AsyncGenerator<L1Table> {
  const { file, lengthBytes, request, snapshotTable } = state;
  const place = { ...snapshotTable, virtualSizeBytes: lengthBytes };
  const { snapshots } = await readSnapshotTable(file, place, request.path);
  for (const snapshot of snapshots) {
    const l1 = await walk.snapshotL1(snapshot).catch(orNothingToFollow);
    if (l1 !== null) yield l1;
  }
}

const foreignEntry = async (
  state: ImageState,
  walk: TableWalk,
  table: NamedTable,
  { entries, taken, tables }: LeftChanges,
): Promise<string | null> => {
  const { clusterBytes, dataFile, file, map } = state;
  const bytes = await walk.read(table);
  if (bytes === null) return null;
  const source = tables.get(table.offset);
  // The entries of an image with a data file name no cluster of its own.
  const isTaken = (clusters: readonly HostCluster[]): boolean =>
    dataFile === null && clusters.some((c) => taken.has(c));
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
