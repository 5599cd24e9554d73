/** Where guest clusters are: from entries to mappings (specification: "Cluster mapping", "Standard Cluster Descriptor"). */
import { invalidImage } from '../../src/base/block-error.ts';
import { isAligned } from '../../src/base/range.ts';
import { type GuestOffset, hostOffset } from '../../src/base/units.ts';
import type { Mapping } from '../../src/block/driver.ts';
import type { CachedTable } from '../../src/block/table-cache.ts';
import {
  entryHex,
  entryOffset,
  isCompressed,
  isCopied,
  type TableEntry,
  ZERO_LOW,
} from './entry.ts';
import type { ImageState } from './state.ts';

/** What one L2 entry says. */
export type EntryKind = 'unallocated' | 'zero' | 'zero-allocated' | 'data' | 'compressed';

export const entryAt = (slice: CachedTable, index: number): TableEntry => ({
  high: slice.view.getUint32(index * 8),
  low: slice.view.getUint32(index * 8 + 4),
});

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
    const slice = map.slices.peek(table + sliceStart);
    if (slice === undefined) {
      return map.slices.get(table + sliceStart).then(() => this.mapping(offset, lengthBytes));
    }
    return this.#inSlice(slice, index, offset, lengthBytes);
  }

  /** Checks an entry. Errors: EIO for one that breaks the format or points nowhere. */
  kindOf(slice: CachedTable, index: number): EntryKind {
    const { high, low } = entryAt(slice, index);
    if (isCompressed(high)) return 'compressed';
    const offset = entryOffset(high, low);
    const isZero = (low & ZERO_LOW) !== 0;
    if (isZero && this.#state.header.version < 3) {
      throw this.#bad(slice, index, 'reads as zeros, which version 2 does not have');
    }
    if (offset === 0) {
      if (isCopied(high)) throw this.#bad(slice, index, 'points to the header');
      return isZero ? 'zero' : 'unallocated';
    }
    const { clusterBytes, file, metadata } = this.#state;
    if (!isAligned(offset, clusterBytes))
      throw this.#bad(slice, index, 'is not a multiple of the cluster size');
    if (offset >= file.lengthBytes && !this.#isAllocatedHere(offset))
      throw this.#bad(slice, index, 'lies past the end of the file');
    if (metadata.has(offset / clusterBytes)) throw this.#bad(slice, index, 'points to metadata');
    return isZero ? 'zero-allocated' : 'data';
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
    const { clusterBytes, map, file } = this.#state;
    const kind = this.kindOf(slice, index);
    const { high, low } = entryAt(slice, index);
    const inCluster = offset % clusterBytes;
    const first = entryOffset(high, low);
    const copied = isCopied(high);
    let clusters = 1;
    const limit = Math.min(
      map.sliceEntries - index,
      Math.ceil((inCluster + lengthBytes) / clusterBytes),
    );
    while (
      clusters < limit &&
      this.#continues(slice, index + clusters, kind, first + clusters * clusterBytes, copied)
    )
      clusters++;
    const run = { lengthBytes: Math.min(lengthBytes, clusters * clusterBytes - inCluster) };
    const at = hostOffset(first + inCluster);
    switch (kind) {
      case 'unallocated':
        return { kind: 'unallocated', ...run };
      case 'zero':
        return { kind: 'zero', ...run, allocated: false };
      case 'zero-allocated':
        return { kind: 'zero', ...run, allocated: true, hostOffset: at };
      case 'compressed':
        return { kind: 'opaque', ...run };
      case 'data':
        return { kind: 'data', ...run, file, hostOffset: at, inPlace: copied && this.inPlace };
    }
  }

  // A bad entry ends the run before it: only the request that reaches it fails.
  #continues(
    slice: CachedTable,
    index: number,
    kind: EntryKind,
    expected: number,
    copied: boolean,
  ): boolean {
    if (kind === 'compressed') return false;
    const { high, low } = entryAt(slice, index);
    if (kind === 'unallocated') return high === 0 && low === 0;
    if (isCompressed(high)) return false;
    if (kind === 'zero')
      return entryOffset(high, low) === 0 && (low & ZERO_LOW) !== 0 && !isCopied(high);
    if (entryOffset(high, low) !== expected || isCopied(high) !== copied) return false;
    const isZero = (low & ZERO_LOW) !== 0;
    if (isZero !== (kind === 'zero-allocated')) return false;
    const { clusterBytes, file, metadata } = this.#state;
    return (
      (expected < file.lengthBytes || this.#isAllocatedHere(expected)) &&
      !metadata.has(expected / clusterBytes)
    );
  }

  /** A cluster that was taken without being written lies past the end of the file until the file grows. */
  #isAllocatedHere(offset: number): boolean {
    const { refcounts, clusterBytes } = this.#state;
    const block = refcounts.residentBlock(offset / clusterBytes);
    return block !== null && block !== 'none' && refcounts.read(block, offset / clusterBytes) > 0;
  }

  #bad(slice: CachedTable, index: number, what: string): Error {
    const { high, low } = entryAt(slice, index);
    const { path } = this.#state.request;
    return invalidImage(`L2 entry ${entryHex(high, low)} ${what}`, {
      path,
      offset: slice.key + index * 8,
    });
  }
}
