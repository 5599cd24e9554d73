/**
 * Counting the clusters of an L1 table once more, or once less: every L2 table that it names, and every host cluster that
 * their entries name (compressed ones as often as they touch it). Only while no request runs and the dirty bit, where
 * there is one, is set: blocks are written as the memory needs it, in any order and without a sync.
 */
import { BlockError, invalidImage } from '../../src/base/block-error.ts';
import {
  guestOffset,
  type HostCluster,
  hostCluster,
  hostOffsetOfCluster,
} from '../../src/base/units.ts';
import type { CachedTable } from '../../src/block/table-cache.ts';
import type { Allocator, ClusterRun } from './allocator.ts';
import { writeRefcountBlocks } from './checkpoint.ts';
import { hex } from './entry.ts';
import type { ImageState } from './state.ts';
import type { L1Table, NamedTable, TableWalk } from './table-walk.ts';

/** More dirty refcount blocks than this are written at once. */
const MAX_DIRTY_BYTES = 4 << 20;

export class SharedRefcounts {
  readonly #state: ImageState;
  readonly #allocator: Allocator;
  readonly #walk: TableWalk;

  constructor(state: ImageState, allocator: Allocator, walk: TableWalk) {
    this.#state = state;
    this.#allocator = allocator;
    this.#walk = walk;
  }

  /**
   * Counts everything that the table names once more, or nothing. Errors: EOPNOTSUPP where the refcounts are too narrow;
   * EIO kind invalid-image for tables that break the format.
   */
  async raise(l1: L1Table): Promise<void> {
    let raised = 0;
    try {
      for (const table of this.#walk.tables(l1)) {
        for (const cluster of await this.#named(table)) {
          await this.#raiseOne(cluster);
          raised++;
        }
      }
    } catch (error) {
      await this.#lowerFirst(l1, raised);
      throw error;
    }
  }

  /**
   * Counts everything that the table names once less, and gives back what nobody names any more. An entry that breaks
   * the format is left out and told: what it meant is leaked.
   */
  async lower(l1: L1Table): Promise<void> {
    for (const table of this.#walk.tables(l1)) {
      await this.#lowerAll(await this.#named(table, (problem) => this.#warn(problem)));
    }
  }

  /** The same for a table's own clusters, which nothing names any more. */
  async lowerRun({ first, count }: ClusterRun): Promise<void> {
    await this.#lowerAll(Array.from({ length: count }, (_, i) => hostCluster(first + i)));
  }

  /** What a cluster's refcount is: at once when its block is in memory. */
  count(cluster: HostCluster): number | Promise<number> {
    const { refcounts } = this.#state;
    const block = refcounts.residentBlock(cluster);
    if (block === 'none') return 0;
    if (block !== null) return refcounts.read(block, cluster);
    return refcounts.loadBlockOf(cluster).then(() => this.count(cluster));
  }

  /** The table's own cluster, and those of its entries. */
  async #named(
    table: NamedTable,
    skip?: (problem: string) => void,
  ): Promise<readonly HostCluster[]> {
    const bytes = await this.#walk.read(table);
    const own = hostCluster(table.offset / this.#state.clusterBytes);
    return bytes === null ? [own] : [own, ...this.#walk.clustersOf(table, bytes, skip)];
  }

  async #raiseOne(cluster: HostCluster): Promise<void> {
    const { refcounts, request, clusterBytes } = this.#state;
    const block = refcounts.residentBlock(cluster) ?? (await this.#blockOf(cluster));
    const count = block === null || block === 'none' ? 0 : refcounts.read(block, cluster);
    const context = { path: request.path, offset: hostOffsetOfCluster(cluster, clusterBytes) };
    if (block === null || block === 'none' || count === 0) {
      throw invalidImage(`host cluster ${cluster} is in use, but its refcount is 0`, {
        ...context,
        hint: 'repair it: vdiskfs check -r all',
      });
    }
    if (count === refcounts.max) {
      throw new BlockError({
        kind: 'unsupported',
        message: `its refcounts hold ${refcounts.max} at most, and host cluster ${cluster} (${hex(context.offset)}) has that many users`,
        hint: 'delete a snapshot, or convert the image with a larger refcount_bits',
        path: request.path,
      });
    }
    refcounts.set(block, cluster, count + 1);
    if (refcounts.cache.dirtyBytes > MAX_DIRTY_BYTES) await writeRefcountBlocks(this.#state);
  }

  async #lowerFirst(l1: L1Table, times: number): Promise<void> {
    let left = times;
    for (const table of this.#walk.tables(l1)) {
      if (left === 0) return;
      const named = (await this.#named(table)).slice(0, left);
      left -= named.length;
      await this.#lowerAll(named);
    }
  }

  async #lowerAll(clusters: readonly HostCluster[]): Promise<void> {
    const free: HostCluster[] = [];
    for (const cluster of clusters) {
      const { refcounts, metadata } = this.#state;
      const block = refcounts.residentBlock(cluster) ?? (await this.#blockOf(cluster));
      const count = block === null || block === 'none' ? 0 : refcounts.read(block, cluster);
      if (block === null || block === 'none' || count === 0) {
        this.#warn(`refcount of host cluster ${cluster} is 0, too low: the image needs a check`);
        continue;
      }
      if (count === 1 && metadata.has(cluster)) {
        this.#warn(`host cluster ${cluster} holds metadata, and a snapshot named it as its own`);
        continue;
      }
      refcounts.set(block, cluster, count - 1);
      if (count === 1) free.push(cluster);
      if (refcounts.cache.dirtyBytes > MAX_DIRTY_BYTES) await writeRefcountBlocks(this.#state);
    }
    for (const run of runsOf(free)) await this.#free(run);
  }

  // Nothing on disk names it any more, and no request runs: it is punched and free at once.
  async #free(run: ClusterRun): Promise<void> {
    const { clusterBytes, file, request } = this.#state;
    const start = hostOffsetOfCluster(run.first, clusterBytes);
    const bytes = Math.min(run.count * clusterBytes, file.lengthBytes - start);
    if (request.discard === 'unmap' && bytes > 0) await file.discard(guestOffset(start), bytes);
    this.#allocator.free(run);
  }

  /** The block that counts a cluster, to be used in the turn of the event loop in which this resolves. */
  async #blockOf(cluster: HostCluster): Promise<CachedTable | null> {
    const { refcounts } = this.#state;
    for (;;) {
      const block = refcounts.residentBlock(cluster);
      if (block === 'none') return null;
      if (block !== null) return block;
      await refcounts.loadBlockOf(cluster);
    }
  }

  #warn(problem: string): void {
    this.#state.request.log.warning(this.#state.request.path, problem);
  }
}

const runsOf = (clusters: readonly HostCluster[]): readonly ClusterRun[] => {
  const runs: ClusterRun[] = [];
  for (const cluster of [...clusters].sort((a, b) => a - b)) {
    const last = runs.at(-1);
    if (last !== undefined && last.first + last.count === cluster)
      runs[runs.length - 1] = { first: last.first, count: last.count + 1 };
    else runs.push({ first: cluster, count: 1 });
  }
  return runs;
};
