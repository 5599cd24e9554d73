/** Which host clusters the bitmaps of an image take, and that nothing else lies there. */
import { invalidImage } from '../../src/base/block-error.ts';
import { divideUp } from '../../src/base/range.ts';
import { type HostCluster, hostCluster, hostOffsetOfCluster } from '../../src/base/units.ts';
import type { ClusterRun } from './allocator.ts';
import type { BitmapExtension, StoredBitmap } from './bitmap-directory.ts';
import { ALL_ONES, type BitmapTable } from './bitmap-table.ts';
import { ENTRY_BYTES } from './layout.ts';
import type { ImageState } from './state.ts';

export class BitmapClusters {
  readonly #state: ImageState;

  constructor(state: ImageState) {
    this.#state = state;
  }

  ofDirectory({ directoryOffset, directoryBytes }: BitmapExtension): ClusterRun {
    return this.#run(directoryOffset, directoryBytes);
  }

  /** Of its table, and of what that names; none when the table is not known. */
  ofBitmap(stored: StoredBitmap, table: BitmapTable | null): readonly ClusterRun[] {
    if (table === null) return [];
    const { clusterBytes } = this.#state;
    const runs = [this.#run(stored.tableOffset, stored.tableEntries * ENTRY_BYTES)];
    for (const entry of table) {
      if (entry > ALL_ONES) runs.push({ first: hostCluster(entry / clusterBytes), count: 1 });
    }
    return runs;
  }

  /** They hold metadata from now on. Errors: kind invalid-image for a cluster that does already. */
  claim(runs: readonly ClusterRun[], what: string): void {
    const taken = this.overlap(runs);
    if (taken !== null) {
      const offset = hostOffsetOfCluster(taken, this.#state.clusterBytes);
      const message = `${what} lies where other metadata does, or twice in one place`;
      throw invalidImage(message, { path: this.#state.request.path, offset });
    }
    for (const { first, count } of runs) this.#state.metadata.addRun(first, count, 'other');
  }

  /** The first cluster that holds metadata, or that the runs name twice; null for none. */
  overlap(runs: readonly ClusterRun[]): HostCluster | null {
    const own = new Set<HostCluster>();
    for (const { first, count } of runs) {
      for (let cluster = first; cluster < first + count; cluster++) {
        if (this.#state.metadata.isAny(cluster) || own.has(cluster)) return cluster;
        own.add(cluster);
      }
    }
    return null;
  }

  /** Nothing on disk names them any more: they are given back after the next checkpoint. */
  retire(runs: readonly ClusterRun[]): void {
    for (const run of runs) {
      for (let i = 0; i < run.count; i++) this.#state.metadata.remove(hostCluster(run.first + i));
      this.#state.unmapped.push(run);
    }
    if (runs.length > 0) this.#state.schedule.changed();
  }

  #run(offset: number, lengthBytes: number): ClusterRun {
    const { clusterBytes } = this.#state;
    return {
      first: hostCluster(offset / clusterBytes),
      count: divideUp(lengthBytes, clusterBytes),
    };
  }
}
