/** What an allocating write maps anew: clusters, and which part of them it fills. */
import { alignDown, alignUp } from '../../src/base/range.ts';
import { hostOffsetOfCluster } from '../../src/base/units.ts';
import type { CachedTable } from '../../src/block/table-cache.ts';
import type { Allocation } from './allocator.ts';
import { copiedEntry, isCompressed, type L2Entry, NO_ENTRY, plainEntry } from './entry.ts';
import type { ImageState } from './state.ts';
import { maskOf } from './subclusters.ts';

/** Clusters to be mapped anew. */
export interface Target {
  /** Guest offset of the first cluster. */
  readonly start: number;
  readonly clusters: number;
  /** Of the first cluster. */
  readonly hostOffset: number;
  /** The place reads as zeros: zeros need not be written. */
  readonly isFresh: boolean;
  /**
   * Guest range that gets content: what the guest writes, rounded to subclusters; without them all of the clusters. Empty
   * where only space is given.
   */
  readonly filled: { readonly from: number; readonly to: number };
}

/** Subclusters of a target's cluster `index` that get content. */
export const filledMask = (state: ImageState, target: Target, index: number): number => {
  const { clusterBytes, subclusterBytes } = state;
  const start = target.start + index * clusterBytes;
  const { from, to } = target.filled;
  const first = Math.max(0, Math.min(clusterBytes, from - start)) / subclusterBytes;
  const end = Math.max(0, Math.min(clusterBytes, to - start)) / subclusterBytes;
  return maskOf(first, end);
};

/** The entry of a target's cluster `index`, which was `old`. */
export const targetEntry = (
  state: ImageState,
  target: Target,
  index: number,
  old: L2Entry,
  asZeros: boolean,
): L2Entry => {
  const hostOffset = target.hostOffset + index * state.clusterBytes;
  if (!state.map.hasSubclusters) return plainEntry(copiedEntry(hostOffset, asZeros));
  const filled = filledMask(state, target, index);
  const { zeroes, allocated } = isCompressed(old.high) ? NO_ENTRY : old;
  return {
    ...copiedEntry(hostOffset),
    zeroes: (zeroes & ~filled) >>> 0,
    allocated: (allocated | filled) >>> 0,
  };
};

/** New clusters for a guest's write. What is packed has to be unpacked as a whole; else only what is written is filled. */
export const targetOf = (
  state: ImageState,
  allocation: Allocation,
  slice: { readonly table: CachedTable; readonly index: number },
  write: { readonly offset: number; readonly lengthBytes: number },
): Target => {
  const { clusterBytes, subclusterBytes, map } = state;
  const start = alignDown(write.offset, clusterBytes);
  const end = start + allocation.count * clusterBytes;
  const isPacked = (i: number): boolean =>
    isCompressed(map.entry(slice.table, slice.index + i).high);
  const from = isPacked(0) ? start : alignDown(write.offset, subclusterBytes);
  const to = isPacked(allocation.count - 1)
    ? end
    : alignUp(write.offset + write.lengthBytes, subclusterBytes);
  return {
    start,
    clusters: allocation.count,
    hostOffset: hostOffsetOfCluster(allocation.first, clusterBytes),
    isFresh: allocation.isFresh,
    filled: { from, to },
  };
};

/** Subclusters of an entry that keep their data, and so have to go with it to another host cluster. */
export const keptMask = (old: L2Entry, filled: number): number =>
  isCompressed(old.high) ? 0 : (old.allocated & ~filled) >>> 0;

/** New clusters that are filled as a whole. */
export const wholeTarget = (
  allocation: Allocation,
  start: number,
  clusterBytes: number,
): Target => ({
  start,
  clusters: allocation.count,
  hostOffset: hostOffsetOfCluster(allocation.first, clusterBytes),
  isFresh: allocation.isFresh,
  filled: { from: start, to: start + allocation.count * clusterBytes },
});
