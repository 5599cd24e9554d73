/**
 * Guest writes. In place where a cluster is this image's alone; else into new clusters, with copy-on-write of what the
 * guest does not write.
 *
 * Order of an allocating write: lock the clusters, take host clusters, write data (copied parts with it), map them in
 * memory, journal, answer. A failure before the mapping changes gives the clusters back and leaves the old content.
 *
 * Owns which pieces of a write go in place and which allocate, and the locks of those; what a piece's clusters are filled with
 * is target-content.ts, how they are mapped target-publisher.ts.
 */
import { Parts } from '../../src/base/parts.ts';
import { alignDown, alignUp } from '../../src/base/range.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { Mapping } from '../../src/block/driver.ts';
import type { Content } from '../../src/block/host-range.ts';
import type { CachedTable } from '../../src/block/table-cache.ts';
import type { Allocator } from './allocator.ts';
import { BufferPool } from './buffer-pool.ts';
import { CompressedWriter } from './compressed-write.ts';
import { DataClusters } from './data-clusters.ts';
import { entryOffset, isCopied } from './entry.ts';
import type { EntryLookup } from './lookup.ts';
import type { ImageState } from './state.ts';
import { runsOf } from './subclusters.ts';
import type { OwnTables } from './tables.ts';
import { TargetContent } from './target-content.ts';
import { type PublishOptions, TargetPublisher } from './target-publisher.ts';
import { type PlacementOptions, UnwrittenClusters } from './unwritten-clusters.ts';
import { WriterAtOnce } from './write-at-once.ts';
import { type Target, targetOf } from './write-target.ts';

const COPY: PublishOptions = { isCopy: true };

export class Writer {
  readonly #state: ImageState;
  readonly #lookup: EntryLookup;
  readonly #clusters: DataClusters;
  readonly #tables: OwnTables;
  readonly #content: TargetContent;
  readonly #publisher: TargetPublisher;
  readonly #unwritten: UnwrittenClusters;
  readonly #compressed: CompressedWriter;
  readonly #atOnce: WriterAtOnce;

  constructor(state: ImageState, lookup: EntryLookup, allocator: Allocator, tables: OwnTables) {
    const clusters = new DataClusters(state, allocator);
    const buffers = new BufferPool();
    const content = new TargetContent({ state, lookup, tables, buffers });
    const publisher = new TargetPublisher(state, tables, clusters);
    const parts = { state, lookup, clusters, tables, content, publisher };
    this.#state = state;
    this.#lookup = lookup;
    this.#clusters = clusters;
    this.#tables = tables;
    this.#content = content;
    this.#publisher = publisher;
    this.#unwritten = new UnwrittenClusters(parts);
    this.#compressed = new CompressedWriter({ state, lookup, tables, allocator });
    this.#atOnce = new WriterAtOnce({ state, lookup, clusters, tables, buffers });
  }

  /** See `DriverInstance.copiesAtOnce`. */
  get worksAtOnce(): boolean {
    return this.#atOnce.works;
  }

  /** See `DriverInstance.writeAtOnce`. */
  writeAtOnce(offset: number, buffer: Uint8Array, cluster: Uint8Array | null): boolean {
    return this.#atOnce.write(offset, buffer, cluster);
  }

  /** See `DriverInstance.write`. */
  async write(offset: number, buffer: Content): Promise<void> {
    const pieces = new Parts();
    try {
      for (let done = 0; done < buffer.length; ) {
        const at = offset + done;
        const m = await this.#lookup.mapping(guestOffset(at), buffer.length - done);
        const length = isInPlace(m)
          ? m.lengthBytes
          : await this.#allocatingRun(at, buffer.length - done, m);
        const part = buffer.subarray(done, done + length);
        pieces.add(isInPlace(m) ? this.#writeInPlace(m, at, part) : this.#writeLocked(at, part));
        done += length;
      }
    } finally {
      // The buffer is the caller's again only when nobody reads it any more.
      await pieces.settled();
    }
    await pieces.results();
  }

  /** See `CompressedWriter.write`; written as by `write` where packing makes the cluster no smaller. */
  async writeCompressed(offset: number, buffer: Uint8Array): Promise<void> {
    if (!(await this.#compressed.write(offset, buffer))) await this.write(offset, buffer);
  }

  /**
   * See `DriverInstance.populate`. What is unallocated under the lock reads from the backing, which nobody changes: the
   * copy is what the guest sees there.
   */
  async populate(offset: number, bytes: Content): Promise<void> {
    const { clusterBytes, locks } = this.#state;
    const end = offset + bytes.length;
    for (let at = offset; at < end; ) {
      const next = Math.min(end, this.#state.map.sliceEnd(at));
      const lock = await locks.acquire({ start: at, end: alignUp(next, clusterBytes) });
      try {
        while (at < next) {
          const m = await this.#lookup.mapping(guestOffset(at), next - at);
          const part = bytes.subarray(at - offset, at - offset + m.lengthBytes);
          at +=
            m.kind === 'unallocated' ? await this.#writeAllocating(at, part, COPY) : part.length;
        }
      } finally {
        lock.release();
      }
    }
  }

  /** See `UnwrittenClusters.allocate`. */
  allocate(offset: number, lengthBytes: number, options?: PlacementOptions): Promise<void> {
    return this.#unwritten.allocate(offset, lengthBytes, options);
  }

  /** How far from `at` neither piece can be written in place: one lock, and allocations that stay together. */
  async #allocatingRun(at: number, lengthBytes: number, first: Mapping): Promise<number> {
    const span = Math.min(lengthBytes, this.#state.map.sliceEnd(at) - at);
    let run = Math.min(first.lengthBytes, span);
    // To the end of its cluster at least, or two locks would meet in one cluster.
    while (run < span) {
      const m = await this.#lookup.mapping(guestOffset(at + run), span - run);
      if (isInPlace(m)) break;
      run += m.lengthBytes;
    }
    return Math.min(run, span);
  }

  async #writeInPlace(m: Mapping & { kind: 'data' }, guest: number, bytes: Content): Promise<void> {
    await this.#state.data.write({ guest, host: m.hostOffset }, bytes);
  }

  async #writeLocked(offset: number, buffer: Content): Promise<void> {
    const { clusterBytes, locks } = this.#state;
    const start = alignDown(offset, clusterBytes);
    const lock = await locks.acquire({ start, end: alignUp(offset + buffer.length, clusterBytes) });
    try {
      for (let done = 0; done < buffer.length; ) {
        // Looked up again: who held the lock before may have mapped it.
        const m = await this.#lookup.mapping(guestOffset(offset + done), buffer.length - done);
        const rest = buffer.subarray(done, isInPlace(m) ? done + m.lengthBytes : buffer.length);
        if (isInPlace(m)) await this.#writeInPlace(m, offset + done, rest);
        done += isInPlace(m) ? m.lengthBytes : await this.#writeAllocating(offset + done, rest);
      }
    } finally {
      lock.release();
    }
  }

  /** Allocates for the clusters from `offset` on, as many as fit together; returns how many bytes were written. */
  async #writeAllocating(
    offset: number,
    buffer: Content,
    options: PublishOptions = {},
  ): Promise<number> {
    const { clusterBytes, map } = this.#state;
    const start = alignDown(offset, clusterBytes);
    const place = map.place(offset);
    const slice = await this.#tables.sliceFor(place);
    const wanted = Math.min(
      Math.ceil((offset - start + buffer.length) / clusterBytes),
      map.sliceEntries - place.index,
    );
    const kept = this.#keptTarget(slice, place.index, offset, buffer.length);
    if (kept !== null) {
      const part = buffer.subarray(0, kept.filled.to - offset);
      await this.#content.fill(kept, offset, part);
      await this.#publisher.publish(kept, null, options);
      return part.length;
    }
    let clusters = Math.max(1, map.emptyRun(slice, place.index, wanted));
    while (clusters < wanted && this.#lookup.needsCluster(slice, place.index + clusters))
      clusters++;
    const allocation = await this.#clusters.allocate(start, clusters);
    const part = buffer.subarray(
      0,
      Math.min(buffer.length, start + allocation.count * clusterBytes - offset),
    );
    const target = await this.#clusters.undoingOnFailure(allocation, async () => {
      // Asked for again after the await; its entries are locked.
      const table = await this.#tables.sliceFor(place);
      const write = { offset, lengthBytes: part.length };
      const found = targetOf(this.#state, allocation, { table, index: place.index }, write);
      await this.#content.copyKept(found);
      await this.#content.fill(found, offset, part);
      return found;
    });
    await this.#publisher.publish(target, allocation, options);
    return part.length;
  }

  /**
   * The host cluster that this image alone has for what reads as zeros or from below: it is used. With subclusters, as far as
   * the next one that holds data, which is written in place.
   */
  #keptTarget(
    slice: CachedTable,
    index: number,
    offset: number,
    lengthBytes: number,
  ): Target | null {
    const { map, clusterBytes, subclusterBytes } = this.#state;
    const { high, low, allocated } = map.entry(slice, index);
    const subcluster = map.subclusterOf(offset);
    const kind = this.#lookup.kindForChange(slice, index, subcluster);
    if ((kind !== 'zero-allocated' && kind !== 'reserved') || !isCopied(high)) return null;
    const start = alignDown(offset, clusterBytes);
    const [data] = runsOf(allocated & ~((1 << subcluster) - 1));
    const end = data === undefined ? start + clusterBytes : start + data.first * subclusterBytes;
    const to = Math.min(end, alignUp(offset + lengthBytes, subclusterBytes));
    const filled = { from: alignDown(offset, subclusterBytes), to };
    return { start, clusters: 1, hostOffset: entryOffset(high, low), isFresh: false, filled };
  }
}

const isInPlace = (m: Mapping): m is Mapping & { kind: 'data' } => m.kind === 'data' && m.inPlace;
