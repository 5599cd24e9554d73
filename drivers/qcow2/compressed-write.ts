/**
 * Writing compressed clusters (specification: "Compressed Clusters Descriptor"). Several share a host cluster, packed one
 * after the other; each counts in the refcount of every host cluster that it touches.
 *
 * Packing is off the main thread (compression.ts) and in parallel; taking a place is one turn of the event loop, in which
 * the count is journaled too: who shares a host cluster may be answered before the one that took it. A
 * place is never used twice: `forget` ends the packing into a cluster of which something was unmapped, because it may
 * be free, and another's, by the next time.
 */
import { guestOffset } from '../../src/base/units.ts';
import type { CachedTable } from '../../src/block/table-cache.ts';
import type { Allocator } from './allocator.ts';
import { type Compression, compressionOf } from './compression.ts';
import { compressedEntry, type TableEntry } from './entry.ts';
import type { ImageState } from './state.ts';

/** What one packed cluster is put to. */
export interface PackedPlace {
  readonly hostOffset: number;
  readonly entry: TableEntry;
}

export class CompressedWriter {
  readonly #state: ImageState;
  readonly #allocator: Allocator;
  readonly #compression: Compression;
  /** The host cluster that is being filled, and its bytes in use. */
  #tail: { readonly cluster: number; used: number } | null = null;
  #placing: Promise<unknown> = Promise.resolve();

  constructor(state: ImageState, allocator: Allocator) {
    this.#state = state;
    this.#allocator = allocator;
    this.#compression = compressionOf(state.header.compressionType);
  }

  /** The packed bytes; null when packing makes a cluster no smaller. */
  async pack(cluster: Uint8Array): Promise<Uint8Array | null> {
    const packed = await this.#compression.pack(cluster);
    return packed.length < this.#state.clusterBytes ? packed : null;
  }

  /** Takes a place and counts it. One at a time. Errors: those of the allocator. */
  place(packedBytes: number): Promise<PackedPlace> {
    const placed = this.#placing.then(() => this.#place(packedBytes));
    this.#placing = placed.catch(() => undefined);
    return placed;
  }

  /** Something of a host cluster was unmapped. */
  forget(first: number, last: number): void {
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
      const hostOffset = tail.cluster * clusterBytes + tail.used;
      tail.used += packedBytes;
      this.#state.tell([refcounts.set(block, tail.cluster, count + 1)]);
      return { hostOffset, entry: compressedEntry(hostOffset, packedBytes, header.clusterBits) };
    }
    const allocation = await this.#allocator.allocate(1);
    const hostOffset = allocation.first * clusterBytes;
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

  async #blockOf(cluster: number): Promise<CachedTable | null> {
    const { refcounts } = this.#state;
    for (;;) {
      const block = refcounts.residentBlock(cluster);
      if (block === 'none') return null;
      if (block !== null) return block;
      await refcounts.loadBlockOf(cluster);
    }
  }
}
