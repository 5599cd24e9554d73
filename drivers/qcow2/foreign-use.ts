/**
 * Whether another program has used what the restart journal has taken, of an image that was not locked all the time: after its engine
 * and its supervisor were killed, QEMU may have written it before we come back. Of version 3 this is the second look: an image that was opened
 * for writing has lost the journal's mark, and nothing of the journal is left (journal-mark.ts). What comes here is one that QEMU made
 * writable later, to commit an overlay to it. Of version 2 it is all there is.
 *
 * Words and refcounts do not tell of it (replay.ts). That program takes free host clusters where we took them, and counts them as
 * we would have; it puts its tables where ours are not yet. So nothing is taken up
 *
 * 1. when metadata lies in a cluster that the journal has taken, and it is no table that the journal makes there;
 * 2. when a word that the journal changes lies in no table that is in force, and the active image's alone;
 * 3. when an entry of any table on disk names a cluster that was free when the journal began or during it, and the
 *    journal has not put that entry there;
 * 4. when what the journal has unmapped is not counted often enough to be given back (foreign-counts.ts).
 *
 * Costs the reading of all tables, twice where something was unmapped. What is written in place leaves no trace; nor does what takes no
 * cluster and changes no word that the journal knows.
 */
import { BlockError, toBlockError } from '../../src/base/block-error.ts';
import { viewOf } from '../../src/base/byte-order.ts';
import { alignDown } from '../../src/base/range.ts';
import {
  guestOffset,
  type HostCluster,
  hostCluster,
  hostOffsetOfCluster,
} from '../../src/base/units.ts';
import { entryHex, entryOffset, hex, isCopied, isSameEntry, type L2Entry } from './entry.ts';
import { findMiscounted } from './foreign-counts.ts';
import { ENTRY_BYTES } from './layout.ts';
import type { LeftChanges } from './left-changes.ts';
import type { Budget } from './sparse-counters.ts';
import type { ImageState } from './state.ts';
import { type L1Table, type NamedTable, orNothingToFollow, TableWalk } from './table-walk.ts';

interface Search {
  readonly state: ImageState;
  readonly walk: TableWalk;
  readonly work: Budget;
  readonly left: LeftChanges;
  /** Host clusters that were free at some time: nobody names them but who took them then. */
  readonly taken: ReadonlySet<HostCluster>;
  /** Offsets of tables. Snapshots share most of theirs. */
  readonly seen: Set<number>;
}

/**
 * How another program shows in the image; null when it does not. Errors: EIO, of a table of the active image; kind invalid-image of tables
 * that break the format.
 */
export const findForeignUse = async (
  state: ImageState,
  left: LeftChanges,
): Promise<string | null> => {
  const taken = new Set<HostCluster>();
  for (const [cluster, changes] of left.refcounts)
    if (changes.some(({ old, now }) => old === 0 || now === 0)) taken.add(cluster);
  const walk = new TableWalk(state);
  const work = await walk.readingBudget();
  const search: Search = { state, walk, work, left, taken, seen: new Set() };
  return (
    foreignMetadata(search) ??
    strayWord(search) ??
    (await foreignIn(search, walk.activeL1())) ??
    (await foreignInSnapshots(search)) ??
    (await findMiscounted(walk, state, left))
  );
};

const foreignMetadata = ({ state, taken, left }: Search): string | null => {
  for (const cluster of taken)
    if (isForeignMetadata(state, left, cluster))
      return `host cluster ${cluster} holds its metadata`;
  return null;
};

const isForeignMetadata = (state: ImageState, left: LeftChanges, cluster: HostCluster): boolean => {
  const { clusterBytes, metadata, refcounts } = state;
  if (!metadata.isAny(cluster)) return false;
  const offset = hostOffsetOfCluster(cluster, clusterBytes);
  if (!left.tables.has(offset) || metadata.isSaved(cluster)) return true;
  // Where the L1 table names it is looked at later.
  if (metadata.kindOf(cluster) === 'table') return false;
  for (let index = 0; index < refcounts.tableEntries; index++) {
    if (refcounts.blockOffset(index) === offset)
      return !isMadeAt(left, refcounts.tableOffset + index * ENTRY_BYTES, offset);
  }
  return true;
};

/** The journal has put a table's offset there. */
const isMadeAt = ({ words }: LeftChanges, at: number, offset: number): boolean =>
  (words.get(at) ?? []).some(({ now }) => entryOffset(now.high, now.low) === offset);

/** A word that is not the journal's to write any more. */
const strayWord = ({ state, walk, left }: Search): string | null => {
  const { clusterBytes, map, refcounts } = state;
  const isIn = (start: number, entries: number, at: number): boolean =>
    at >= start && at < start + entries * ENTRY_BYTES;
  const own = new Set(left.tables.keys());
  const addOwn = ({ high, low }: Pick<L2Entry, 'high' | 'low'>): void => {
    if (isCopied(high)) own.add(entryOffset(high, low));
  };
  for (const { l1Index } of walk.tables(walk.activeL1())) addOwn(map.l1Entry(l1Index));
  const others: number[] = [];
  for (const [at, changes] of left.words) {
    if (isIn(map.l1Offset, map.l1Entries, at))
      for (const { old, now } of changes) [old, now].forEach(addOwn);
    else if (!isIn(refcounts.tableOffset, refcounts.tableEntries, at)) others.push(at);
  }
  const stray = others.find((at) => !own.has(alignDown(at, clusterBytes)));
  return stray === undefined ? null : `no table of its own has the entry at ${hex(stray)} any more`;
};

const foreignInSnapshots = async (search: Search): Promise<string | null> => {
  const { walk, work } = search;
  for await (const l1 of walk.snapshotL1Tables(work)) {
    const found = await foreignIn(search, l1).catch((error: unknown) => {
      if (work.isSpent) throw error;
      return orNothingToFollow(error);
    });
    if (found !== null) return found;
  }
  return null;
};

const foreignIn = async (search: Search, l1: L1Table): Promise<string | null> => {
  const { walk, work, left, taken, seen, state } = search;
  await walk.survey(l1, { known: seen, work });
  for (const table of walk.tables(l1)) {
    const at = l1.offset + table.l1Index * ENTRY_BYTES;
    const isKnown = isActive(search, l1) && isMadeAt(left, at, table.offset);
    if (taken.has(hostCluster(table.offset / state.clusterBytes)) && !isKnown)
      return `${l1.what} names the table at ${hex(table.offset)}`;
    if (seen.has(table.offset)) continue;
    seen.add(table.offset);
    const bytes = await readTable(search, l1, table);
    const found = bytes === null ? null : await foreignEntry(search, table, bytes);
    if (found !== null) return found;
  }
  return null;
};

const isActive = ({ state }: Search, l1: L1Table): boolean => l1.offset === state.map.l1Offset;

/** Null for zeros, and for a snapshot's that cannot be read: that it is damaged takes nothing from what was answered. */
const readTable = async (
  search: Search,
  l1: L1Table,
  table: NamedTable,
): Promise<Uint8Array | null> => {
  try {
    return await search.walk.read(table);
  } catch (cause) {
    if (!isActive(search, l1)) return null;
    const { path } = search.state.request;
    throw new BlockError({
      kind: 'io',
      message:
        `the L2 table at ${hex(table.offset)} cannot be read, so nobody knows whether another program has written the image since ` +
        `vdiskfs was killed: ${toBlockError(cause).message}`,
      hint: 'mend what is below the image, or open it read-only, which shows what was synced',
      path,
      offset: table.offset,
      cause,
    });
  }
};

const foreignEntry = async (
  { state, walk, left, taken }: Search,
  table: NamedTable,
  bytes: Uint8Array,
): Promise<string | null> => {
  const { clusterBytes, dataFile, file, map } = state;
  const source = left.tables.get(table.offset);
  // The entries of an image with a data file name no cluster of its own.
  const isTaken = (clusters: readonly HostCluster[]): boolean =>
    dataFile === null && clusters.some((c) => taken.has(c));
  const ignore = (): void => undefined;
  if (source === undefined && !isTaken(walk.clustersOf(table, bytes, ignore))) return null;
  const before = new Uint8Array(clusterBytes);
  if (source !== undefined && source !== 0) await file.readClipped(guestOffset(source), before);
  for (let at = 0; at < clusterBytes; at += map.entryBytes) {
    const part = bytes.subarray(at, at + map.entryBytes);
    const known = left.words.get(table.offset + at) ?? [];
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
