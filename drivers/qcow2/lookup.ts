/** Where guest clusters are: from entries to mappings (specification: "Cluster mapping", "Standard Cluster Descriptor"). */

import { invalidImage } from '../../src/base/block-error.ts';
import { isAligned } from '../../src/base/range.ts';
import {
  clusterOfHostOffset,
  type GuestOffset,
  type HostCluster,
  hostCluster,
  hostOffset,
} from '../../src/base/units.ts';
import type { Mapping } from '../../src/block/driver.ts';
import type { CachedTable } from '../../src/block/table-cache.ts';
import { corruption } from './corruption.ts';
import {
  compressedPlace,
  entryHex,
  entryOffset,
  isCompressed,
  isCopied,
  type L2Entry,
  ZERO_LOW,
} from './entry.ts';
import { SUBCLUSTERS } from './layout.ts';
import type { ImageState } from './state.ts';
import { equalSubclusters, type SubclusterKind, subclusterKind } from './subclusters.ts';

/** What one L2 entry says, or one subcluster of it. */
export type EntryKind = SubclusterKind | 'compressed';

/** Whether a cluster is kept for it, as plain bytes. */
export const hasPlace = (kind: EntryKind): boolean =>
  kind === 'data' || kind === 'zero-allocated' || kind === 'reserved';

/** A file that was cut short, which harms nobody else. */
const PAST_END = 'lies past the end of the file';

export class EntryLookup {
  readonly #state: ImageState;
  /** Whether guests may write in place: false in read-only images, and before the first write has prepared the header. */
  inPlace = false;

  constructor(state: ImageState) {
    this.#state = state;
  }

  /** See `DriverInstance.mapping`. */
  mapping(offset: GuestOffset, lengthBytes: number): Mapping | Promise<Mapping> {
    const { map } = this.#state;
    const { l1Index, sliceStart, index } = map.place(offset);
    const table = map.tableOffset(l1Index);
    if (table === 0) return this.#withoutTable(offset, lengthBytes, l1Index);
    const slice = map.slices.glance(table + sliceStart);
    if (slice === undefined) {
      return map.slices.get(table + sliceStart).then(() => this.mapping(offset, lengthBytes));
    }
    return this.#inSlice(slice, index, offset, lengthBytes);
  }

  /**
   * Checks an entry, and says what it is; with subclusters, what the given one is. Errors: EIO for an entry that breaks the
   * format or points nowhere.
   */
  kindOf(slice: CachedTable, index: number, subcluster = 0): EntryKind {
    const entry = this.#state.map.entry(slice, index);
    const problem = this.#problemOf(entry);
    if (problem !== null) throw this.#bad(slice, index, problem);
    return this.#kind(entry, subcluster);
  }

  /**
   * As `kindOf`, of an entry that is about to be changed, or its place written. Errors: also EIO, kind invalid-image, for one
   * whose place a snapshot keeps for its own metadata: reading it harms nobody.
   */
  kindForChange(slice: CachedTable, index: number, subcluster = 0): EntryKind {
    const kind = this.kindOf(slice, index, subcluster);
    const { map, metadata, clusterBytes, dataFile } = this.#state;
    if (dataFile !== null) return kind;
    const { high, low } = map.entry(slice, index);
    const isSaved =
      kind === 'compressed'
        ? this.#isPackedIn(high, low, (cluster) => metadata.isSaved(cluster))
        : metadata.isSaved(hostCluster(entryOffset(high, low) / clusterBytes));
    if (isSaved) throw this.#bad(slice, index, "points to a snapshot's metadata");
    return kind;
  }

  /** What is packed, shared or nowhere cannot be written where it is. Errors: as `kindForChange`. */
  needsCluster(slice: CachedTable, index: number): boolean {
    const { high } = this.#state.map.entry(slice, index);
    return !hasPlace(this.kindForChange(slice, index)) || !isCopied(high);
  }

  #kind(entry: L2Entry, subcluster: number): EntryKind {
    if (isCompressed(entry.high)) return 'compressed';
    const isPlaced = this.#isPlaced(entry);
    if (this.#state.map.hasSubclusters) return subclusterKind(entry, subcluster, isPlaced);
    const isZero = (entry.low & ZERO_LOW) !== 0;
    if (entryOffset(entry.high, entry.low) === 0 && (isZero || !isPlaced))
      return isZero ? 'zero' : 'unallocated';
    return isZero ? 'zero-allocated' : 'data';
  }

  /** There is a cluster for it; in an external data file also at offset 0, which the COPIED flag tells. */
  #isPlaced({ high, low }: L2Entry): boolean {
    return entryOffset(high, low) !== 0 || (this.#state.dataFile !== null && isCopied(high));
  }

  #problemOf(entry: L2Entry): string | null {
    if (this.#state.dataFile !== null) return this.#problemOutside(entry);
    const { high, low, zeroes, allocated } = entry;
    const { clusterBytes, file, metadata, header, map } = this.#state;
    if (isCompressed(high)) {
      // To be overwritten would give metadata back.
      const isIn = this.#isPackedIn(high, low, (cluster) => metadata.has(cluster));
      return isIn ? 'points to metadata' : null;
    }
    if ((low & ZERO_LOW) !== 0 && header.version < 3 && !map.hasSubclusters)
      return 'reads as zeros, which version 2 does not have';
    if ((zeroes & allocated) !== 0) return 'has subclusters that are both allocated and zero';
    const offset = entryOffset(high, low);
    // Without a place the COPIED flag says nothing.
    if (offset === 0) return allocated === 0 ? null : 'has allocated subclusters, but no cluster';
    if (!isAligned(offset, clusterBytes)) return 'is not a multiple of the cluster size';
    if (offset >= file.lengthBytes && !this.#isAllocatedHere(offset)) return PAST_END;
    return metadata.has(hostCluster(offset / clusterBytes)) ? 'points to metadata' : null;
  }

  /** Whether one of the host clusters that a compressed cluster touches is such a one. */
  #isPackedIn(high: number, low: number, isSuch: (cluster: HostCluster) => boolean): boolean {
    const { header, clusterBytes } = this.#state;
    const { hostOffset: at, maxBytes } = compressedPlace(high, low, header.clusterBits);
    const last = clusterOfHostOffset(hostOffset(at + maxBytes - 1), clusterBytes);
    for (let cluster = clusterOfHostOffset(at, clusterBytes); cluster <= last; cluster++)
      if (isSuch(cluster)) return true;
    return false;
  }

  /** Of an entry that places its cluster in an external data file. */
  #problemOutside(entry: L2Entry): string | null {
    const { high, low, zeroes, allocated } = entry;
    if (isCompressed(high)) return 'is compressed, in an image with an external data file';
    if ((zeroes & allocated) !== 0) return 'has subclusters that are both allocated and zero';
    if (allocated !== 0 && !this.#isPlaced(entry))
      return 'has allocated subclusters, but no cluster';
    if (isAligned(entryOffset(high, low), this.#state.clusterBytes)) return null;
    return 'is not a multiple of the cluster size';
  }

  #withoutTable(offset: number, lengthBytes: number, l1Index: number): Mapping {
    const { map } = this.#state;
    let next = l1Index + 1;
    while (next * map.tableSpanBytes < offset + lengthBytes && map.tableOffset(next) === 0) next++;
    return {
      kind: 'unallocated',
      lengthBytes: Math.min(lengthBytes, next * map.tableSpanBytes - offset),
    };
  }

  #inSlice(slice: CachedTable, index: number, offset: number, lengthBytes: number): Mapping {
    const { clusterBytes, map, metadata, clusterFile: file, dataFile } = this.#state;
    const inCluster = offset % clusterBytes;
    const subcluster = map.subclusterOf(offset);
    const kind = this.kindOf(slice, index, subcluster);
    const entry = map.entry(slice, index);
    const first = entryOffset(entry.high, entry.low);
    const copied = isCopied(entry.high);
    if (
      dataFile !== null &&
      this.#isPlaced(entry) &&
      kind !== 'zero' &&
      first !== offset - inCluster
    )
      throw this.#bad(slice, index, 'is not the guest offset, as it must be with a data file');
    const limit = Math.min(
      map.sliceEntries - index,
      Math.ceil((inCluster + lengthBytes) / clusterBytes),
    );
    let runEnd = clusterBytes;
    if (map.hasSubclusters)
      runEnd = this.#subclustersEnd({ slice, index, kind, subcluster, limit });
    else {
      runEnd = this.#clustersAlike({ slice, index, kind, limit }, first) * clusterBytes;
    }
    const run = { lengthBytes: Math.min(lengthBytes, runEnd - inCluster) };
    const at = hostOffset(first + inCluster);
    const mayChange =
      this.inPlace && (dataFile !== null || !metadata.isSaved(hostCluster(first / clusterBytes)));
    switch (kind) {
      case 'unallocated':
        return { kind: 'unallocated', ...run };
      case 'reserved':
        return { kind: 'unallocated', ...run, file, hostOffset: at };
      case 'zero':
        return { kind: 'zero', ...run, allocated: false };
      case 'zero-allocated':
        return { kind: 'zero', ...run, allocated: true, file, hostOffset: at };
      case 'compressed':
        return { kind: 'opaque', ...run };
      case 'data':
        return { kind: 'data', ...run, file, hostOffset: at, inPlace: copied && mayChange };
    }
  }

  /**
   * How far subclusters of one kind lie side by side: bytes from the start of the first one's cluster. A bad entry ends the
   * run before it.
   */
  #subclustersEnd({ slice, index, kind, subcluster, limit }: SubclusterRun): number {
    const { map, clusterBytes, subclusterBytes, dataFile, metadata } = this.#state;
    if (kind === 'compressed') return clusterBytes;
    const entry = map.entry(slice, index);
    const place = this.#isPlaced(entry) ? entryOffset(entry.high, entry.low) : null;
    let end = subcluster + equalSubclusters(entry, subcluster);
    for (let i = 1; i < limit && end === i * SUBCLUSTERS; i++) {
      const next = map.entry(slice, index + i);
      const expected = place === null ? 0 : place + i * clusterBytes;
      if (entryOffset(next.high, next.low) !== expected) break;
      if (isCopied(next.high) !== isCopied(entry.high)) break;
      if (this.#problemOf(next) !== null || this.#kind(next, 0) !== kind) break;
      if (
        place !== null &&
        dataFile === null &&
        metadata.isSaved(hostCluster(expected / clusterBytes))
      )
        break;
      end += equalSubclusters(next, 0);
    }
    return end * subclusterBytes;
  }

  /** How many entries from the first on go on as it does: most images are long runs of data, or of nothing. */
  #clustersAlike({ slice, index, kind, limit }: EntryRun, first: number): number {
    const { map, clusterBytes, dataFile, file, metadata } = this.#state;
    if (kind === 'compressed' || limit === 1) return 1;
    if (kind === 'unallocated') return Math.max(1, map.emptyRun(slice, index, limit));
    if (kind === 'zero') return this.#zeroRun(slice, index, limit);
    const clusters = map.contiguousRun(slice, index, limit);
    if (dataFile !== null) return clusters;
    // A bad entry ends the run before it: only the request that reaches it fails.
    const alike = 1 + metadata.freeOf(hostCluster(first / clusterBytes + 1), clusters - 1);
    const inFile = Math.ceil((file.lengthBytes - first) / clusterBytes);
    for (let i = Math.max(1, inFile); i < alike; i++)
      if (!this.#isAllocatedHere(first + i * clusterBytes)) return i;
    return alike;
  }

  #zeroRun(slice: CachedTable, index: number, limit: number): number {
    let clusters = 1;
    while (clusters < limit) {
      const { high, low } = this.#state.map.entry(slice, index + clusters);
      if (isCompressed(high) || isCopied(high) || entryOffset(high, low) !== 0) break;
      if ((low & ZERO_LOW) === 0) break;
      clusters++;
    }
    return clusters;
  }

  /** A cluster that was taken without being written lies past the end of the file until the file grows. */
  #isAllocatedHere(offset: number): boolean {
    const { refcounts, clusterBytes } = this.#state;
    const cluster = hostCluster(offset / clusterBytes);
    const block = refcounts.residentBlock(cluster);
    return block !== null && block !== 'none' && refcounts.read(block, cluster) > 0;
  }

  #bad(slice: CachedTable, index: number, what: string): Error {
    const { map, request } = this.#state;
    const entry = map.entry(slice, index);
    const bitmap = map.hasSubclusters
      ? ` with bitmap ${entryHex(entry.zeroes, entry.allocated)}`
      : '';
    const text = `L2 entry ${entryHex(entry.high, entry.low)}${bitmap} ${what}`;
    return (what === PAST_END ? invalidImage : corruption)(text, {
      path: request.path,
      offset: slice.key + index * map.entryBytes,
    });
  }
}

interface EntryRun {
  readonly slice: CachedTable;
  readonly index: number;
  readonly kind: EntryKind;
  /** Clusters to look at. */
  readonly limit: number;
}

interface SubclusterRun extends EntryRun {
  /** The first one. */
  readonly subcluster: number;
}
