/**
 * Guest writes that need nothing to be waited for: in place, or into new clusters with copy-on-write from what is cached. The order is
 * that of write.ts, in one turn of the event loop: take host clusters, write data, journal, map them.
 *
 * Whoever changes the mapping of these clusters with awaits in between holds a range lock: then nothing is done here.
 */
import { assert } from '../../src/base/assert.ts';
import { alignDown, alignUp, isAligned } from '../../src/base/range.ts';
import { guestOffset, hostOffsetOfCluster } from '../../src/base/units.ts';
import { writeAtOnce } from '../../src/block/at-once.ts';
import type { CachedTable } from '../../src/block/table-cache.ts';
import type { Allocation } from './allocator.ts';
import type { BufferPool } from './buffer-pool.ts';
import type { EntryPlace } from './cluster-map.ts';
import type { DataClusters } from './data-clusters.ts';
import { copiedEntry, entryOffset, isCopied, plainEntry } from './entry.ts';
import type { EntryKind, EntryLookup } from './lookup.ts';
import type { ImageState } from './state.ts';
import type { OwnTables } from './tables.ts';

export interface WriterAtOnceParts {
  readonly state: ImageState;
  readonly lookup: EntryLookup;
  readonly clusters: DataClusters;
  readonly tables: OwnTables;
  readonly buffers: BufferPool;
}

const PAGE_BYTES = 4096;

const arePages = (offset: number, lengthBytes: number): boolean =>
  isAligned(offset, PAGE_BYTES) && isAligned(lengthBytes, PAGE_BYTES);

/** A guest's write, and the entry of its cluster. */
interface ClusterWrite {
  readonly offset: number;
  readonly buffer: Uint8Array;
  /** Guest offset of the cluster. */
  readonly start: number;
  readonly slice: CachedTable;
  readonly place: EntryPlace;
  readonly kind: EntryKind;
  /** What the cluster reads as, in memory that may be written; null: to be read. */
  readonly cluster: Uint8Array | null;
}

export class WriterAtOnce {
  readonly #parts: WriterAtOnceParts;

  constructor(parts: WriterAtOnceParts) {
    this.#parts = parts;
  }

  /** Where not, `write` never does anything. */
  get works(): boolean {
    const { clusterFile, map, data } = this.#parts.state;
    return clusterFile.driver.worksAtOnce === true && !map.hasSubclusters && !data.isEncrypted;
  }

  /** See `DriverInstance.writeAtOnce`. */
  write(offset: number, buffer: Uint8Array, cluster: Uint8Array | null): boolean {
    const { state, tables, lookup } = this.#parts;
    const { clusterBytes, map, locks } = state;
    // Whoever is not answered at once waits for what the journal has not taken.
    if (!this.works || state.journaled.isBehind) return false;
    const end = offset + buffer.length;
    const start = alignDown(offset, clusterBytes);
    assert(
      cluster === null || (cluster.length === clusterBytes && end <= start + clusterBytes),
      'a cluster that comes along is the one that the write lies in',
    );
    if (locks.isBusy({ start, end: alignUp(end, clusterBytes) })) return false;
    for (let at = offset; at < end; ) {
      const place = map.place(at);
      const slice = tables.sliceAtOnce(place);
      if (slice === null) return false;
      let bytes = this.#writeRun(at, buffer.subarray(at - offset), slice, place);
      if (bytes === 0) {
        bytes = Math.min(end - at, clusterBytes - (at % clusterBytes));
        const part = buffer.subarray(at - offset, at - offset + bytes);
        const kind = lookup.kindForChange(slice, place.index);
        const start = alignDown(at, clusterBytes);
        const piece = { offset: at, buffer: part, start, slice, place, kind, cluster };
        if (!this.#writeCluster(piece)) return false;
      }
      at += bytes;
    }
    return true;
  }

  /** Fills whole clusters that are nowhere yet, as many as follow each other here and on the host; how many bytes, 0 for none. */
  #writeRun(offset: number, buffer: Uint8Array, slice: CachedTable, place: EntryPlace): number {
    const { state, clusters } = this.#parts;
    const { map, clusterBytes, clusterFile, request } = state;
    const whole = offset % clusterBytes === 0 ? Math.floor(buffer.length / clusterBytes) : 0;
    if (whole < 2) return 0;
    const empty = map.emptyRun(slice, place.index, whole);
    const allocation = empty < 2 ? null : clusters.allocateAtOnce(offset, empty);
    if (allocation === null) return 0;
    const { count } = allocation;
    const host = hostOffsetOfCluster(allocation.first, clusterBytes);
    const bytes = count * clusterBytes;
    const isWritten = (): boolean => writeAtOnce(clusterFile, host, buffer.subarray(0, bytes));
    const changes = [...allocation.changes, map.runChange(slice, place.index, count, host)];
    const isDone = this.#orGivenBack(allocation, isWritten) && state.offer(changes);
    if (!isDone) {
      clusters.giveBackAtOnce(allocation);
      return 0;
    }
    map.mapRun(slice, place.index, count, host);
    request.mappingChanged({ start: guestOffset(offset), lengthBytes: bytes });
    state.limitJournal();
    return bytes;
  }

  #writeCluster(write: ClusterWrite): boolean {
    const { state } = this.#parts;
    const { map } = state;
    const { offset, buffer, start, slice, place, kind } = write;
    if (kind === 'compressed' || kind === 'reserved') return false;
    const { high, low } = map.entry(slice, place.index);
    // In a data file each cluster lies where the guest has it; an entry that says otherwise is corrupt.
    const isElsewhere = entryOffset(high, low) !== start && (high !== 0 || low !== 0);
    if (state.dataFile !== null && isElsewhere) return false;
    if (!isCopied(high) || kind === 'unallocated' || kind === 'zero')
      return this.#allocating(write);
    const host = entryOffset(high, low);
    if (kind === 'data') return writeAtOnce(state.clusterFile, host + offset - start, buffer);
    return this.#fill(write, host, false) && this.#map(write, host, []);
  }

  #allocating(write: ClusterWrite): boolean {
    const { state, clusters } = this.#parts;
    // A hole is only left around whole pages.
    if (this.#readsZero(write) && !arePages(write.offset, write.buffer.length)) return false;
    const allocation = clusters.allocateAtOnce(write.start, 1);
    if (allocation === null) return false;
    const host = hostOffsetOfCluster(allocation.first, state.clusterBytes);
    const isFilled = (): boolean => this.#fill(write, host, allocation.isFresh);
    const isDone =
      this.#orGivenBack(allocation, isFilled) && this.#map(write, host, allocation.changes);
    if (!isDone) clusters.giveBackAtOnce(allocation);
    return isDone;
  }

  /** What `fill` throws comes after the clusters were given back. */
  #orGivenBack(allocation: Allocation, fill: () => boolean): boolean {
    try {
      return fill();
    } catch (error) {
      this.#parts.clusters.giveBackAtOnce(allocation);
      throw error;
    }
  }

  /** All of its cluster, as far as nothing is read to know. */
  #readsZero({ kind, start }: ClusterWrite): boolean {
    if (kind === 'unallocated') return start >= this.#parts.state.backingBytes;
    return kind === 'zero' || kind === 'zero-allocated';
  }

  /** Writes the guest's bytes, and around them what its cluster reads as. `isFresh`: the place reads as zeros. */
  #fill(write: ClusterWrite, host: number, isFresh: boolean): boolean {
    const { offset, buffer, start } = write;
    const { state, buffers } = this.#parts;
    const { clusterBytes, clusterFile, lengthBytes, request } = state;
    const readsZero = this.#readsZero(write);
    if ((isFresh && readsZero) || buffer.length === clusterBytes)
      return writeAtOnce(clusterFile, host + offset - start, buffer);
    if (write.cluster !== null && !readsZero) {
      write.cluster.set(buffer, offset - start);
      return writeAtOnce(clusterFile, host, write.cluster);
    }
    const cluster = buffers.take(clusterBytes);
    try {
      const inside = Math.min(clusterBytes, Math.max(0, lengthBytes - start));
      cluster.fill(0, readsZero ? 0 : inside);
      const isRead =
        readsZero || request.readGuestAtOnce(guestOffset(start), cluster.subarray(0, inside));
      if (!isRead) return false;
      cluster.set(buffer, offset - start);
      return writeAtOnce(clusterFile, host, cluster);
    } finally {
      buffers.giveBack(cluster);
    }
  }

  /** Journals the cluster's new place, then maps it: false when the journal takes nothing, and nothing has changed. */
  #map(
    { start, slice, place }: ClusterWrite,
    host: number,
    allocated: Allocation['changes'],
  ): boolean {
    const { state } = this.#parts;
    const { map, clusterBytes, request } = state;
    const old = map.entry(slice, place.index);
    const now = plainEntry(copiedEntry(host));
    if (!state.offer([...allocated, map.entryChange(slice, place.index, now)])) return false;
    map.setEntry(slice, place.index, now);
    if (entryOffset(old.high, old.low) !== host) state.unmapEntry(old);
    request.mappingChanged({ start: guestOffset(start), lengthBytes: clusterBytes });
    state.limitJournal();
    return true;
  }
}
