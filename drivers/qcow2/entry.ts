/**
 * L1 and L2 table entries (specification: "Cluster mapping"). An entry is 64 bits; here it is two words of 32, high and
 * low, because a number holds 53.
 *
 *     high word  bit 31 COPIED (refcount is exactly one), bit 30 compressed, bits 0-23 offset bits 32-55
 *     low word   offset bits 9-31, bit 0 reads as zeros (version 3; not in an image with subclusters)
 *
 * In an image with subclusters an L2 entry is 128 bits (specification: "Extended L2 Entries"): these two words, then one
 * with a bit for each subcluster that reads as zeros, and one with a bit for each that is allocated.
 */
import { type HostOffset, hostOffset } from '../../src/base/units.ts';

const TWO_32 = 2 ** 32;
const HIGH_OFFSET_MASK = 0x00ff_ffff;
const LOW_OFFSET_MASK = 0xffff_fe00;

export const COPIED_HIGH = 0x8000_0000;
export const COMPRESSED_HIGH = 0x4000_0000;
export const ZERO_LOW = 1;

export interface TableEntry {
  readonly high: number;
  readonly low: number;
}

/** An L2 entry, of either kind: the bitmaps are 0 in an image without subclusters. Bit 0 is the first subcluster. */
export interface L2Entry extends TableEntry {
  readonly zeroes: number;
  readonly allocated: number;
}

export const NO_ENTRY: L2Entry = { high: 0, low: 0, zeroes: 0, allocated: 0 };

/** An entry without bitmap. */
export const plainEntry = ({ high, low }: TableEntry): L2Entry => ({
  high,
  low,
  zeroes: 0,
  allocated: 0,
});

export const isSameEntry = (a: L2Entry, b: L2Entry): boolean =>
  a.high === b.high && a.low === b.low && a.zeroes === b.zeroes && a.allocated === b.allocated;

export const isCopied = (high: number): boolean => (high & COPIED_HIGH) !== 0;
export const isCompressed = (high: number): boolean => (high & COMPRESSED_HIGH) !== 0;

/** Host offset of a standard entry or an L1 entry, in bytes; 0 for none. */
export const entryOffset = (high: number, low: number): number =>
  (high & HIGH_OFFSET_MASK) * TWO_32 + ((low & LOW_OFFSET_MASK) >>> 0);

/** Everything but the offset is the same. */
export const hasSameFlags = (highA: number, lowA: number, highB: number, lowB: number): boolean =>
  ((highA ^ highB) & ~HIGH_OFFSET_MASK) === 0 && ((lowA ^ lowB) & ~LOW_OFFSET_MASK) === 0;

/** The entry of a cluster or table at a host offset with refcount one. */
export const copiedEntry = (hostOffset: number, isZero = false): TableEntry => ({
  high: (COPIED_HIGH | Math.floor(hostOffset / TWO_32)) >>> 0,
  low: ((hostOffset >>> 0) | (isZero ? ZERO_LOW : 0)) >>> 0,
});

export const ZERO_ENTRY: L2Entry = { ...NO_ENTRY, low: ZERO_LOW };

/** Where a compressed cluster lies: any byte offset, and at most so many bytes (whole sectors of the host). */
export interface CompressedPlace {
  readonly hostOffset: HostOffset;
  readonly maxBytes: number;
}

/** Specification: "Compressed Clusters Descriptor". */
export const compressedPlace = (
  high: number,
  low: number,
  clusterBits: number,
): CompressedPlace => {
  const offsetHighBits = 62 - (clusterBits - 8) - 32;
  const offsetHigh = high & (2 ** offsetHighBits - 1);
  const start = hostOffset(offsetHigh * TWO_32 + (low >>> 0));
  const sectors = ((high & 0x3fff_ffff) >>> offsetHighBits) + 1;
  return { hostOffset: start, maxBytes: sectors * 512 - (start % 512) };
};

/** The entry of `packedBytes` (1 or more) compressed bytes at a host offset. */
export const compressedEntry = (
  hostOffset: number,
  packedBytes: number,
  clusterBits: number,
): TableEntry => {
  const offsetHighBits = 62 - (clusterBits - 8) - 32;
  const sectors = Math.floor((hostOffset + packedBytes - 1) / 512) - Math.floor(hostOffset / 512);
  const high = Math.floor(hostOffset / TWO_32) + sectors * 2 ** offsetHighBits;
  return { high: (COMPRESSED_HIGH + high) >>> 0, low: hostOffset % TWO_32 };
};

export const hex = (value: number): string => `0x${value.toString(16)}`;
export const entryHex = (high: number, low: number): string =>
  `0x${(high >>> 0).toString(16)}${(low >>> 0).toString(16).padStart(8, '0')}`;
