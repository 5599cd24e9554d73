/**
 * Taking up what a process that died left in the restart journal: every change of mapping that was answered and that no
 * checkpoint had brought to the image.
 *
 * First all is looked at: each word and refcount on disk must be the value before the first change of it, or the value after
 * one of them (a checkpoint may have been under way). Anything else means that another program has written the image,
 * and nothing is applied; of an image that was not locked all the time more is looked at (foreign-use.ts). Then the last
 * values are set in memory, and a checkpoint brings them to the image.
 *
 * Of an image that is marked dirty this comes before its repair (open.ts), which makes COPIED flags and refcounts others than those
 * that the journal goes by.
 */
import { BlockError } from '../../src/base/block-error.ts';
import { viewOf } from '../../src/base/byte-order.ts';
import { alignDown } from '../../src/base/range.ts';
import { guestOffset, type HostCluster, hostCluster } from '../../src/base/units.ts';
import { isPutBack } from '../../src/block/header-changes.ts';
import { entryHex, hex, isSameEntry, type L2Entry, type TableEntry } from './entry.ts';
import { findForeignUse } from './foreign-use.ts';
import { forgetLeftover } from './journal-mark.ts';
import { decodeChanges } from './journal-records.ts';
import { ENTRY_BYTES, EXTENDED_ENTRY_BYTES, INCOMPATIBLE } from './layout.ts';
import { foldChanges, isSamePlace, type LeftChanges, lastOf } from './left-changes.ts';
import type { ImageState } from './state.ts';

/** True when something was applied. Errors: EIO for a journal that cannot be read, or an image that cannot. */
export const replayJournal = async (state: ImageState): Promise<boolean> => {
  const { journal, log, path } = state.request;
  const records = journal?.leftover ?? [];
  if (records.length === 0) return false;
  const left = foldChanges(records.flatMap((record) => decodeChanges(record)));
  const conflict = (await findConflict(state, left)) ?? (await foreignUse(state, left));
  if (conflict !== null) {
    forgetLeftover(state.request, conflict);
    return false;
  }
  await apply(state, left);
  log.info(path, `${records.length} changes taken up from the restart journal`);
  return true;
};

/** Of an image that has not stayed locked. One whose tables nobody can follow is no longer as we left it. */
const foreignUse = async (state: ImageState, left: LeftChanges): Promise<string | null> => {
  if (state.request.journal?.isContinued !== false) return null;
  return findForeignUse(state, left).catch((error: unknown) => {
    if (error instanceof BlockError && error.kind === 'invalid-image') return error.message;
    throw error;
  });
};

const readWord = async (
  { file }: ImageState,
  at: number,
  lengthBytes: number,
): Promise<L2Entry> => {
  const bytes = new Uint8Array(EXTENDED_ENTRY_BYTES);
  await file.readClipped(guestOffset(at), bytes.subarray(0, lengthBytes));
  const view = viewOf(bytes);
  const bitmap = { zeroes: view.getUint32(8), allocated: view.getUint32(12) };
  return { high: view.getUint32(0), low: view.getUint32(4), ...bitmap };
};

/** What on disk is neither old nor new; null when all is. Entries of tables that are new are not on disk yet. */
const findConflict = async (state: ImageState, left: LeftChanges): Promise<string | null> => {
  const { clusterBytes, refcounts } = state;
  for (const owed of left.owed)
    if (!(await isPutBack(state.file, owed))) return `its header has changed at ${hex(owed.at)}`;
  for (const [at, changes] of left.words) {
    const first = changes[0];
    if (first === undefined || left.tables.has(alignDown(at, clusterBytes))) continue;
    const found = await readWord(state, at, first.lengthBytes);
    if (isSameEntry(first.old, found) || changes.some((c) => isSameEntry(c.now, found))) continue;
    const bitmap =
      first.lengthBytes === ENTRY_BYTES ? '' : ` ${entryHex(found.zeroes, found.allocated)}`;
    return `table entry at ${hex(at)} is ${entryHex(found.high, found.low)}${bitmap}`;
  }
  // A snapshot changes them without telling the journal, under the dirty bit. The repair that follows then looks at what refers to what.
  if ((state.header.incompatible & INCOMPATIBLE.dirty) !== 0) return null;
  for (const [cluster, changes] of left.refcounts) {
    const offset = refcounts.blockOffset(refcounts.blockIndexOf(cluster));
    if (offset === 0 || left.tables.has(offset)) continue;
    await refcounts.loadBlockOf(cluster);
    const block = refcounts.residentBlock(cluster);
    const found = block === null || block === 'none' ? 0 : refcounts.read(block, cluster);
    if (changes[0]?.old === found || changes.some((c) => c.now === found)) continue;
    return `refcount of host cluster ${cluster} is ${found}`;
  }
  return null;
};

// Refcount table words, then blocks and refcounts, then L1 words, then L2 entries: each needs the one before.
const apply = async (state: ImageState, left: LeftChanges): Promise<void> => {
  const { map, refcounts, metadata, clusterBytes } = state;
  const words = [...left.words].map(([at, changes]) => ({ at, now: lastOf(changes).now }));
  const tableEnd = refcounts.tableOffset + refcounts.tableEntries * ENTRY_BYTES;
  const l1End = map.l1Offset + map.l1Entries * ENTRY_BYTES;
  const isIn = (start: number, end: number) => (w: { at: number }) => w.at >= start && w.at < end;
  const isTableWord = isIn(refcounts.tableOffset, tableEnd);
  const isL1Word = isIn(map.l1Offset, l1End);
  for (const { at, now } of words.filter(isTableWord)) {
    const offset = now.high * 2 ** 32 + now.low;
    const index = (at - refcounts.tableOffset) / ENTRY_BYTES;
    if (refcounts.blockOffset(index) === offset) continue;
    refcounts.addBlock(index, offset);
    metadata.add(hostCluster(offset / clusterBytes), 'other');
  }
  for (const [cluster, changes] of left.refcounts)
    await setRefcount(state, cluster, lastOf(changes).now);
  for (const { at, now } of words.filter(isL1Word)) {
    map.setL1((at - map.l1Offset) / ENTRY_BYTES, now);
  }
  await makeTables(state, left);
  for (const { at, now } of words.filter((w) => !isTableWord(w) && !isL1Word(w)))
    await setL2(state, at, now);
  for (const [at, changes] of left.words) {
    if (isTableWord({ at })) continue;
    for (const change of changes) unmapOld(state, change.old, change.now);
  }
};

// What the change unmapped was not given back before the process died: that comes after the checkpoint that ends its record.
const unmapOld = (state: ImageState, old: TableEntry, now: TableEntry): void => {
  if (!isSamePlace(old, now)) state.unmapEntry(old);
};

const setRefcount = async (state: ImageState, cluster: HostCluster, now: number): Promise<void> => {
  const { refcounts, request } = state;
  await refcounts.loadBlockOf(cluster);
  const block = refcounts.residentBlock(cluster);
  if (block === null || block === 'none') {
    const message = `the restart journal counts host cluster ${cluster}, which has no refcount block`;
    throw new BlockError({ kind: 'io', message, path: request.path });
  }
  refcounts.set(block, cluster, now);
};

const makeTables = async (state: ImageState, left: LeftChanges): Promise<void> => {
  const { map, file, clusterBytes, metadata, refcounts } = state;
  const blocks = new Set(refcounts.blockOffsets());
  for (const [offset, source] of left.tables) {
    if (blocks.has(offset)) continue;
    let content: Uint8Array | null = null;
    if (source !== 0) {
      content = new Uint8Array(clusterBytes);
      await file.readClipped(guestOffset(source), content);
      metadata.remove(hostCluster(source / clusterBytes));
    }
    map.addTable(offset, content);
    metadata.add(hostCluster(offset / clusterBytes), 'table');
  }
};

const setL2 = async (state: ImageState, at: number, now: L2Entry): Promise<void> => {
  const { map } = state;
  const key = alignDown(at, map.sliceBytes);
  await map.slices.get(key);
  const slice = map.slices.peek(key);
  if (slice === undefined) throw new RangeError('a slice that was just loaded is there');
  map.setEntry(slice, (at - key) / map.entryBytes, now);
};
