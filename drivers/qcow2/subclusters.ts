/**
 * Bitmaps of subclusters (specification: "Extended L2 Entries"): 32 bits, bit 0 is the first subcluster of its cluster. All
 * numbers are unsigned.
 */
import { entryOffset, type L2Entry } from './entry.ts';
import { SUBCLUSTERS } from './layout.ts';

export const ALL_SUBCLUSTERS = 0xffff_ffff;

/** What one subcluster is; `reserved`: a host cluster is kept for it, and what it reads as comes from below. */
export type SubclusterKind = 'unallocated' | 'reserved' | 'zero' | 'zero-allocated' | 'data';

/** Bits `from` to `end` - 1. */
export const maskOf = (from: number, end: number): number =>
  end <= from ? 0 : ((ALL_SUBCLUSTERS >>> (SUBCLUSTERS - (end - from))) << from) >>> 0;

/** How many bits from `from` on are as that one is, in both bitmaps. */
export const equalSubclusters = ({ zeroes, allocated }: L2Entry, from: number): number => {
  const flip = (word: number): number => (((word >>> from) & 1) === 0 ? word : ~word);
  const differs = (flip(zeroes) | flip(allocated)) >>> from;
  const left = SUBCLUSTERS - from;
  return differs === 0 ? left : Math.min(left, lowestBit(differs));
};

/** The runs of bits that are set, from the lowest on. */
export function* runsOf(
  bitmap: number,
): Generator<{ readonly first: number; readonly count: number }> {
  for (let first = 0; first < SUBCLUSTERS; ) {
    const rest = bitmap >>> first;
    if (rest === 0) return;
    first += lowestBit(rest);
    const holes = ~(bitmap >>> first);
    const count = holes === 0 ? SUBCLUSTERS : lowestBit(holes);
    yield { first, count };
    first += count;
  }
}

/** Of a standard entry whose bitmaps are sound. `isPlaced`: there is a host cluster for it. */
export const subclusterKind = (
  entry: L2Entry,
  subcluster: number,
  isPlaced = entryOffset(entry.high, entry.low) !== 0,
): SubclusterKind => {
  if (((entry.zeroes >>> subcluster) & 1) === 1) return isPlaced ? 'zero-allocated' : 'zero';
  if (!isPlaced) return 'unallocated';
  return ((entry.allocated >>> subcluster) & 1) === 1 ? 'data' : 'reserved';
};

const lowestBit = (word: number): number => 31 - Math.clz32(word & -word);
