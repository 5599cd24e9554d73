/**
 * The checkpoint: brings what is mapped in memory to the image, so that at any moment of a power cut the image is
 * consistent and every byte not written since the last flush is what it was (ARCHITECTURE.md, Durability).
 *
 *     0  bytes of the header that are owed (src/block/header-changes.ts); sync. Without any, nothing
 *     1  refcount blocks, as they are now, with every cluster that step 3 names counted; where the refcount table gets
 *        new words, a sync, then those words
 *     2  new L2 tables as they were made (zeros, or a copy of the shared table): nothing names them yet; sync, which
 *        brings the guest's data too (an external data file is synced with it)
 *     3  L2 entries and L1 words; sync
 *     4  the journal forgets what it had before 0; nothing of that is owed any more
 *     5  what was unmapped before 1 is given back, later and by itself (release.ts)
 *     6  what is free at the file's end, and was on disk by 1, is cut off (free-tail.ts)
 *
 * While 0 fails nothing follows it: the header on disk may name other tables than those that are written here.
 * A crash before 3 leaves the old mapping and leaks; inside 3, each entry is old or new, and what it names is on disk.
 *
 * Where the journal has changes, and could not be told later ones, 0 to 4 are done twice: without the later ones first
 * (covered.ts), so that none of them is on disk as long as the journal has an earlier one; then, in the turn in which it has
 * forgotten those, with all. Nothing is given back or cut off in between.
 */
import { viewOf } from '../../src/base/byte-order.ts';
import { allOf } from '../../src/base/parts.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { ClusterRun } from './allocator.ts';
import { type Covered, leaveOut } from './covered.ts';
import type { FreeTail } from './free-tail.ts';
import type { ImageState } from './state.ts';

const WRITES_IN_FLIGHT = 32;

/** Runs one checkpoint; the runs that were unmapped go to `next.release`. Errors: EIO, ENOSPC; all that was dirty stays so. */
export const runCheckpoint = async (
  state: ImageState,
  next: {
    readonly tail: Pick<FreeTail, 'begin' | 'end'>;
    readonly release: (runs: readonly ClusterRun[]) => void;
  },
): Promise<void> => {
  const { journaled } = state;
  const untold = journaled.beginTold();
  if (untold !== null) {
    const told = leaveOut(state, collect(state), untold);
    await write(state, told);
    state.unmapped = [...told.unmapped, ...state.unmapped];
    end(state, told);
  }
  // In the same turn: nothing is told in between.
  journaled.begin();
  const covered = collect(state);
  next.tail.begin();
  await write(state, covered);
  end(state, covered);
  // Not after the first part: the journal may know of it later than of what that has covered.
  state.headerChanges.forget(covered.owed);
  if (covered.unmapped.length > 0) next.release(covered.unmapped);
  await next.tail.end();
};

const write = async (state: ImageState, covered: Covered): Promise<void> => {
  const { journaled, file, headerChanges } = state;
  try {
    await headerChanges.putBack(covered.owed);
    await writeRefcounts(state, covered);
    for (const [offset, content] of covered.tables) {
      await file.write(guestOffset(offset), content ?? new Uint8Array(state.clusterBytes));
    }
    await Promise.all([file.flush(), state.flushClusters()]);
    await writeMapping(state, covered);
    if (covered.slices.length + covered.l1.length > 0) await file.flush();
  } catch (error) {
    state.unmapped = [...covered.unmapped, ...state.unmapped];
    journaled.fail();
    throw error;
  }
};

const end = (state: ImageState, covered: Covered): void => {
  settle(state, covered);
  state.journaled.end();
};

/**
 * Writes dirty refcount blocks where they lie, without a sync: for changes of many refcounts that the dirty bit covers
 * (snapshots.ts), so that they do not fill the memory. Errors: EIO, ENOSPC; what was dirty stays so.
 */
export const writeRefcountBlocks = async ({ refcounts, file }: ImageState): Promise<void> => {
  const blocks = refcounts.cache.snapshotDirty();
  await inParallel(blocks, ({ table, bytes }) => file.write(guestOffset(table.key), bytes));
  for (const block of blocks) refcounts.cache.written(block);
};

// In one turn of the event loop: what is collected belongs together.
const collect = (state: ImageState): Covered => {
  const { map, refcounts, unmapped, headerChanges } = state;
  state.unmapped = [];
  return {
    owed: headerChanges.owed,
    blocks: refcounts.cache.snapshotDirty(),
    words: refcounts.dirtyWords(),
    tables: [...map.newTables],
    slices: map.slices.snapshotDirty(),
    l1: map.dirtyL1(),
    unmapped,
  };
};

const writeRefcounts = async (state: ImageState, { blocks, words }: Covered): Promise<void> => {
  const { file } = state;
  await inParallel(blocks, ({ table, bytes }) => file.write(guestOffset(table.key), bytes));
  if (words.length === 0) return;
  await file.flush();
  await inParallel(words, async ({ at, value }) => {
    await file.write(guestOffset(at), entryBytes(Math.floor(value / 2 ** 32), value >>> 0));
  });
};

const writeMapping = async (state: ImageState, { slices, l1 }: Covered): Promise<void> => {
  const { file } = state;
  await inParallel(slices, ({ table, bytes }) => file.write(guestOffset(table.key), bytes));
  await inParallel(l1, ({ at, entry }) =>
    file.write(guestOffset(at), entryBytes(entry.high, entry.low)),
  );
};

const settle = (state: ImageState, covered: Covered): void => {
  const { map, refcounts } = state;
  for (const snapshot of covered.blocks) refcounts.cache.written(snapshot);
  refcounts.wordsWritten(covered.words.map((w) => w.index));
  for (const [offset, content] of covered.tables) {
    if (map.newTables.get(offset) === content) map.newTables.delete(offset);
  }
  for (const snapshot of covered.slices) map.slices.written(snapshot);
  map.l1Written(covered.l1);
};

const entryBytes = (high: number, low: number): Uint8Array => {
  const bytes = new Uint8Array(8);
  const view = viewOf(bytes);
  view.setUint32(0, high);
  view.setUint32(4, low);
  return bytes;
};

/** All are awaited even when one fails; then the first failure is thrown. */
const inParallel = async <T>(
  items: readonly T[],
  write: (item: T) => Promise<void>,
): Promise<void> => {
  let next = 0;
  const worker = async (): Promise<void> => {
    for (let item = items[next++]; item !== undefined; item = items[next++]) await write(item);
  };
  await allOf(Array.from({ length: Math.min(WRITES_IN_FLIGHT, items.length) }, worker));
};
