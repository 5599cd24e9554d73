/**
 * Gives guest clusters a place that have none, before anybody writes them: for `DriverInstance.allocate` and `preallocate`.
 *
 * Owns how they read on as they did: entries that say zero, zeros that are written, holes of the host below plain entries, or
 * subclusters that stay what they are. The order is that of write.ts, with space in the place of data.
 */
import { alignDown, alignUp } from '../../src/base/range.ts';
import { guestOffset, hostOffsetOfCluster } from '../../src/base/units.ts';
import type { Allocation } from './allocator.ts';
import type { DataClusters } from './data-clusters.ts';
import { type EntryLookup, hasPlace } from './lookup.ts';
import type { ImageState } from './state.ts';
import type { OwnTables } from './tables.ts';
import type { TargetContent } from './target-content.ts';
import type { TargetPublisher } from './target-publisher.ts';
import { wholeTarget } from './write-target.ts';

/** Zeros that have to be written are built in memory: at most this much at once, in bytes. Larger than any cluster. */
const MAX_FILL_BYTES = 8 << 20;

/** How clusters without content get a place. */
export interface PlacementOptions {
  /** What reads as zeros gets plain entries, where its place does so. */
  readonly isPlain: boolean;
  /** The host's space is taken. */
  readonly space: boolean;
}

const KEPT_ZERO: PlacementOptions = { isPlain: false, space: true };

export interface UnwrittenClustersParts {
  readonly state: ImageState;
  readonly lookup: EntryLookup;
  readonly clusters: DataClusters;
  readonly tables: OwnTables;
  readonly content: TargetContent;
  readonly publisher: TargetPublisher;
}

export class UnwrittenClusters {
  readonly #state: ImageState;
  readonly #lookup: EntryLookup;
  readonly #clusters: DataClusters;
  readonly #tables: OwnTables;
  readonly #content: TargetContent;
  readonly #publisher: TargetPublisher;

  constructor(parts: UnwrittenClustersParts) {
    this.#state = parts.state;
    this.#lookup = parts.lookup;
    this.#clusters = parts.clusters;
    this.#tables = parts.tables;
    this.#content = parts.content;
    this.#publisher = parts.publisher;
  }

  /**
   * Gives clusters a place that have none, content unchanged; what reads as zeros gets plain entries over fresh places where
   * `isPlain` says so, else entries that say zero. Errors: ENOSPC. Locks the clusters, those of one L2 slice at a time.
   */
  async allocate(offset: number, lengthBytes: number, options = KEPT_ZERO): Promise<void> {
    const { clusterBytes } = this.#state;
    const end = alignUp(offset + lengthBytes, clusterBytes);
    for (let at = alignDown(offset, clusterBytes); at < end; ) {
      const next = Math.min(end, this.#state.map.sliceEnd(at));
      const lock = await this.#state.locks.acquire({ start: at, end: next });
      try {
        for (let done = at; done < next; )
          done += await this.#allocateUnwritten(done, next - done, options);
      } finally {
        lock.release();
      }
      at = next;
    }
  }

  async #allocateUnwritten(
    start: number,
    lengthBytes: number,
    options: PlacementOptions,
  ): Promise<number> {
    const { clusterBytes, map, header, lengthBytes: end } = this.#state;
    if (start >= end) return lengthBytes;
    if (map.hasSubclusters) return this.#reserve(start, lengthBytes, options);
    const m = await this.#lookup.mapping(guestOffset(start), Math.min(lengthBytes, end - start));
    const isOwned = m.kind === 'data' || m.kind === 'opaque' || (m.kind === 'zero' && m.allocated);
    if (isOwned) return alignUp(m.lengthBytes, clusterBytes);
    const place = map.place(start);
    const slice = await this.#tables.sliceFor(place);
    const readsZero = this.#content.readsZero(m, start, m.lengthBytes);
    const asZeros = header.version >= 3 && readsZero;
    let clusters = 1;
    const wanted = Math.min(
      Math.ceil(m.lengthBytes / clusterBytes),
      map.sliceEntries - place.index,
      asZeros ? Number.POSITIVE_INFINITY : Math.floor(MAX_FILL_BYTES / clusterBytes),
    );
    while (clusters < wanted && this.#lookup.needsCluster(slice, place.index + clusters))
      clusters++;
    const allocation = await this.#clusters.allocate(start, clusters);
    const target = wholeTarget(allocation, start, clusterBytes);
    // A hole reads as zeros; encrypted, as noise.
    const isPlain =
      options.isPlain && readsZero && allocation.isFresh && !this.#state.data.isEncrypted;
    await this.#clusters.undoingOnFailure(allocation, async () => {
      await this.#takeSpace(allocation, options);
      if (!asZeros && !isPlain)
        await this.#content.fill({ ...target, isFresh: false }, start, new Uint8Array(0));
    });
    await this.#publisher.publish(target, allocation, { asZeros: asZeros && !isPlain });
    return allocation.count * clusterBytes;
  }

  /** Subclusters need no content to have a place: each stays what it is, zero or not there. */
  async #reserve(start: number, lengthBytes: number, options: PlacementOptions): Promise<number> {
    const { clusterBytes, map } = this.#state;
    const place = map.place(start);
    const slice = await this.#tables.sliceFor(place);
    const isPlaced = (i: number): boolean => {
      const kind = this.#lookup.kindForChange(slice, place.index + i);
      return kind === 'compressed' || hasPlace(kind);
    };
    if (isPlaced(0)) return clusterBytes;
    const inSlice = map.sliceEntries - place.index;
    const wanted = Math.min(Math.ceil(lengthBytes / clusterBytes), inSlice);
    let clusters = 1;
    while (clusters < wanted && !isPlaced(clusters)) clusters++;
    const allocation = await this.#clusters.allocate(start, clusters);
    const whole = wholeTarget(allocation, start, clusterBytes);
    await this.#clusters.undoingOnFailure(allocation, () => this.#takeSpace(allocation, options));
    const target = { ...whole, filled: { from: start, to: start } };
    await this.#publisher.publish(target, allocation);
    return allocation.count * clusterBytes;
  }

  /** Of the host; without, the file only has to reach so far: entries point nowhere past its end. */
  async #takeSpace({ first, count }: Allocation, { space }: PlacementOptions): Promise<void> {
    const { clusterBytes, clusterFile } = this.#state;
    const start = hostOffsetOfCluster(first, clusterBytes);
    const bytes = count * clusterBytes;
    const end = start + bytes;
    if (space) await clusterFile.allocate(guestOffset(start), bytes);
    else if (clusterFile.lengthBytes < end) await clusterFile.resize(end);
  }
}
