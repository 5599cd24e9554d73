/**
 * The last step of an allocation: the target's clusters get their entries, and from then on are what everybody reads.
 *
 * Owns the order: the mapping in memory changes in one turn of the event loop, whoever follows mappings is told in the same
 * turn, and then the change goes to the journal, with what the allocation counted.
 */
import { guestOffset } from '../../src/base/units.ts';
import type { CachedTable } from '../../src/block/table-cache.ts';
import type { Allocation } from './allocator.ts';
import type { DataClusters } from './data-clusters.ts';
import { entryOffset } from './entry.ts';
import type { Change } from './journal-records.ts';
import type { ImageState } from './state.ts';
import type { OwnTables } from './tables.ts';
import { type Target, targetEntry } from './write-target.ts';

export interface PublishOptions {
  /** The entries say zero; of an image without subclusters. */
  readonly asZeros?: boolean;
  /** The bytes are what was read there before. */
  readonly isCopy?: boolean;
}

export class TargetPublisher {
  readonly #state: ImageState;
  readonly #tables: OwnTables;
  readonly #clusters: DataClusters;

  constructor(state: ImageState, tables: OwnTables, clusters: DataClusters) {
    this.#state = state;
    this.#tables = tables;
    this.#clusters = clusters;
  }

  /**
   * Maps the target's clusters, tells who follows mappings, and journals. `allocation`: what the target's places are, given back
   * when the table to map them in cannot be had; null for places that were this image's before. Errors: ENOSPC, EIO. The caller
   * holds the clusters' range lock.
   */
  async publish(
    target: Target,
    allocation: Allocation | null,
    { asZeros = false, isCopy = false }: PublishOptions = {},
  ): Promise<void> {
    const { clusterBytes, map, request } = this.#state;
    const place = map.place(target.start);
    const load = (): Promise<CachedTable> => this.#tables.sliceFor(place);
    const slice = await (allocation === null
      ? load()
      : this.#clusters.undoingOnFailure(allocation, load));
    const changes: Change[] = [...(allocation?.changes ?? [])];
    const { clusters, hostOffset } = target;
    const isRun = clusters > 1 && !asZeros && !map.hasSubclusters;
    if (isRun && map.emptyRun(slice, place.index, clusters) === clusters)
      changes.push(map.mapRun(slice, place.index, clusters, hostOffset));
    else
      for (let i = 0; i < clusters; i++) {
        const old = map.entry(slice, place.index + i);
        const now = targetEntry(this.#state, target, i, old, asZeros);
        if (entryOffset(old.high, old.low) !== entryOffset(now.high, now.low))
          this.#state.unmapEntry(old);
        changes.push(map.setEntry(slice, place.index + i, now));
      }
    request.mappingChanged({
      start: guestOffset(target.start),
      lengthBytes: target.clusters * clusterBytes,
      staysReadable: isCopy,
    });
    await this.#state.record(changes);
  }
}
