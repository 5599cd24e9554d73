/**
 * Writing compressed clusters (specification: "Compressed Clusters Descriptor"). Several share a host cluster, packed one
 * after the other; each counts in the refcount of every host cluster that it touches.
 *
 * Packing is off the main thread (compression.ts) and in parallel; taking a place is one turn of the event loop, in which
 * the count is journaled too: who shares a host cluster may be answered before the one that took it. A
 * place is never used twice: `#forget` ends the packing into a cluster of which something was unmapped, because it may
 * be free, and another's, by the next time.
 */
import { assert } from '../../src/base/assert.ts';
import { BlockError } from '../../src/base/block-error.ts';
import { guestOffset, type HostCluster, hostOffsetOfCluster } from '../../src/base/units.ts';
import type { CachedTable } from '../../src/block/table-cache.ts';
import type { Allocator } from './allocator.ts';
import { type Compression, compressionOf } from './compression.ts';
import { compressedEntry, plainEntry, type TableEntry } from './entry.ts';
import type { EntryLookup } from './lookup.ts';
import type { ImageState } from './state.ts';
import type { OwnTables } from './tables.ts';

/** What one packed cluster is put to. */
interface PackedPlace {
  readonly hostOffset: number;
  readonly entry: TableEntry;
}

export interface CompressedWriterParts {
  readonly state: ImageState;
  readonly lookup: EntryLookup;
  readonly tables: OwnTables;
  readonly allocator: Allocator;
}

export class CompressedWriter {
  readonly #state: ImageState;
  readonly #lookup: EntryLookup;
  readonly #tables: OwnTables;
  readonly #allocator: Allocator;
  readonly #compression: Compression;
  /** The host cluster that is being filled, and its bytes in use. */
  #tail: { readonly cluster: HostCluster; used: number } | null = null;
  #placing: Promise<unknown> = Promise.resolve();

  constructor({ state, lookup, tables, allocator }: CompressedWriterParts) {
    this.#state = state;
    this.#lookup = lookup;
    this.#tables = tables;
    this.#allocator = allocator;
    this.#compression = compressionOf(state.header.compressionType);
    state.compressedUnmapped = (first, last) => this.#forget(first, last);
  }

  /**
   * Writes one whole guest cluster packed; false, and nothing is written, when that makes it no smaller. The last cluster's
   * bytes past the image's end are zeros. Errors: as `DriverInstance.write`; those of kind unsupported and bad-request where
   * the image has no compressed clusters. Locks the cluster.
   */
  async write(offset: number, buffer: Uint8Array): Promise<boolean> {
    const { clusterBytes, locks, file, map, request, dataFile } = this.#state;
    assert(offset % clusterBytes === 0, 'a compressed write begins at a cluster');
    if (this.#state.data.isEncrypted) throw this.#packedPlain();
    if (dataFile !== null) {
      const message = 'has an external data file, and so no compressed clusters';
      throw new BlockError({ kind: 'unsupported', message, path: request.path });
    }
    const cluster = buffer.length === clusterBytes ? buffer : new Uint8Array(clusterBytes);
    if (cluster !== buffer) cluster.set(buffer);
    const packed = await this.#pack(cluster);
    if (packed === null) return false;
    const lock = await locks.acquire({ start: offset, end: offset + clusterBytes });
    try {
      const place = map.place(offset);
      this.#lookup.kindForChange(await this.#tables.sliceFor(place), place.index);
      // A failure leaves its place leaked; the journal knows that it is counted.
      const placed = await this.#placeNext(packed.length);
      await file.write(guestOffset(placed.hostOffset), packed);
      const slice = await this.#tables.sliceFor(place);
      const old = map.entry(slice, place.index);
      const change = map.setEntry(slice, place.index, plainEntry(placed.entry));
      this.#state.unmapEntry(old);
      request.mappingChanged({ start: guestOffset(offset), lengthBytes: clusterBytes });
      await this.#state.record([change]);
    } finally {
      lock.release();
    }
    return true;
  }

  #packedPlain(): BlockError {
    const message = 'is encrypted, and compressed clusters are not: they cannot be written';
    return new BlockError({ kind: 'bad-request', message, path: this.#state.request.path });
  }

  /** The packed bytes; null when packing makes a cluster no smaller. */
  async #pack(cluster: Uint8Array): Promise<Uint8Array | null> {
    const packed = await this.#compression.pack(cluster);
    return packed.length < this.#state.clusterBytes ? packed : null;
  }

  /** Takes a place and counts it. One at a time. Errors: those of the allocator. */
  #placeNext(packedBytes: number): Promise<PackedPlace> {
    const placed = this.#placing.then(() => this.#place(packedBytes));
    this.#placing = placed.catch(() => undefined);
    return placed;
  }

  /** Something of a host cluster was unmapped. */
  #forget(first: HostCluster, last: HostCluster): void {
    if (this.#tail !== null && this.#tail.cluster >= first && this.#tail.cluster <= last)
      this.#tail = null;
  }

  async #place(packedBytes: number): Promise<PackedPlace> {
    const { clusterBytes, header, refcounts } = this.#state;
    const tail = this.#tail;
    const left = tail === null ? 0 : clusterBytes - tail.used;
    const block = tail === null ? null : await this.#blockOf(tail.cluster);
    const count = tail === null || block === null ? 0 : refcounts.read(block, tail.cluster);
    const mayShare = this.#tail === tail && count > 0 && count < refcounts.max;
    if (tail !== null && block !== null && mayShare && packedBytes <= left) {
      const hostOffset = hostOffsetOfCluster(tail.cluster, clusterBytes) + tail.used;
      tail.used += packedBytes;
      this.#state.tell([refcounts.set(block, tail.cluster, count + 1)]);
      return { hostOffset, entry: compressedEntry(hostOffset, packedBytes, header.clusterBits) };
    }
    const allocation = await this.#allocator.allocate(1);
    const hostOffset = hostOffsetOfCluster(allocation.first, clusterBytes);
    const entry = compressedEntry(hostOffset, packedBytes, header.clusterBits);
    try {
      await this.#reserve(hostOffset + clusterBytes);
    } catch (error) {
      await this.#allocator.giveBack(allocation);
      throw error;
    }
    this.#state.tell(allocation.changes);
    this.#tail = { cluster: allocation.first, used: packedBytes };
    return { hostOffset, entry };
  }

  // Readers ask for whole sectors: the file holds them, also behind the last cluster. One byte that nothing was put to yet: a
  // new length would cut off what others have written behind it meanwhile.
  async #reserve(end: number): Promise<void> {
    const { file } = this.#state;
    if (file.lengthBytes < end) await file.write(guestOffset(end - 1), new Uint8Array(1));
  }

  async #blockOf(cluster: HostCluster): Promise<CachedTable | null> {
    const { refcounts } = this.#state;
    for (;;) {
      const block = refcounts.residentBlock(cluster);
      if (block === 'none') return null;
      if (block !== null) return block;
      await refcounts.loadBlockOf(cluster);
    }
  }
}
