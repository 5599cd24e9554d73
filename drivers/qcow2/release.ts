/**
 * Gives back clusters that were unmapped, once that is on disk: waits until no request uses them any more, punches what
 * nobody else uses out of the host file, and only then counts it down, so that the allocator may have it.
 *
 * It runs beside everything else; `close` waits for it.
 */
import { invalidImage, toBlockError } from '../../src/base/block-error.ts';
import { guestOffset, type HostCluster, hostOffsetOfCluster } from '../../src/base/units.ts';
import type { CachedTable } from '../../src/block/table-cache.ts';
import type { Allocator, ClusterRun } from './allocator.ts';
import type { CompressedClusters } from './compressed.ts';
import type { FreeTail } from './free-tail.ts';
import type { Change } from './journal-records.ts';
import type { Refcounts } from './refcounts.ts';
import type { ImageState } from './state.ts';

export class Releases {
  readonly #state: ImageState;
  readonly #allocator: Allocator;
  readonly #compressed: CompressedClusters;
  readonly #tail: FreeTail;
  readonly #running = new Set<Promise<void>>();

  constructor(
    state: ImageState,
    allocator: Allocator,
    users: { readonly compressed: CompressedClusters; readonly tail: FreeTail },
  ) {
    this.#state = state;
    this.#allocator = allocator;
    this.#compressed = users.compressed;
    this.#tail = users.tail;
  }

  /** Begins; a failure leaves the clusters leaked, and is logged. */
  begin(runs: readonly ClusterRun[]): void {
    const running: Promise<void> = this.#release(runs)
      .catch((error: unknown) => {
        const { log, path } = this.#state.request;
        log.error(path, `clusters are leaked: ${toBlockError(error).describe()}`);
      })
      .finally(() => this.#running.delete(running));
    this.#running.add(running);
  }

  /** Resolves when what has begun is done. */
  async settled(): Promise<void> {
    while (this.#running.size > 0) await Promise.all(this.#running);
  }

  async #release(runs: readonly ClusterRun[]): Promise<void> {
    const { request, refcounts } = this.#state;
    await request.quiesce();
    const references = countReferences(runs);
    const free: ClusterRun[] = [];
    for (const [cluster, gone] of references) {
      const count = refcounts.read(await this.#blockOf(cluster), cluster);
      if (count === gone) free.push({ first: cluster, count: 1 });
    }
    this.#compressed.forget();
    // Punched while they are still counted: the allocator must not have them before.
    if (request.discard === 'unmap') for (const run of joined(free)) await this.#punch(run);
    for (const [, counted] of byBlock(references, refcounts)) await this.#countDown(counted);
  }

  /** Clusters of one refcount block: counted down, journaled and free in one turn of the event loop, so that nobody's taking one is journaled first. */
  async #countDown(counted: readonly Counted[]): Promise<void> {
    const { request, refcounts } = this.#state;
    const [first] = counted;
    if (first === undefined) return;
    const block = await this.#blockOf(first.cluster);
    const changes: Change[] = [];
    for (const { cluster, gone } of counted) {
      const count = refcounts.read(block, cluster);
      if (count < gone) {
        const text = `refcount of host cluster ${cluster} is ${count}, too low: the image needs a check`;
        request.log.error(request.path, text);
        continue;
      }
      // In steps of one: whoever takes it next counts it once, and a checkpoint may write that before the journal is told.
      for (let now = count - 1; now >= count - gone; now--)
        changes.push(refcounts.set(block, cluster, now));
      if (count !== gone) continue;
      this.#allocator.free({ first: cluster, count: 1 });
      this.#tail.freed(cluster);
    }
    await this.#state.record(changes);
  }

  async #punch(run: ClusterRun): Promise<void> {
    const { clusterBytes, file } = this.#state;
    const start = hostOffsetOfCluster(run.first, clusterBytes);
    // Past the end of the file there is nothing to punch.
    const bytes = Math.min(run.count * clusterBytes, file.lengthBytes - start);
    if (bytes > 0) await file.discard(guestOffset(start), bytes);
  }

  /** The block that counts a cluster; it may be used in the turn of the event loop in which this resolves. */
  async #blockOf(cluster: HostCluster): Promise<CachedTable> {
    const { refcounts, request } = this.#state;
    for (;;) {
      const block = refcounts.residentBlock(cluster);
      if (block === 'none') {
        const message = `host cluster ${cluster} was mapped, but no refcount block counts it`;
        throw invalidImage(message, { path: request.path });
      }
      if (block !== null) return block;
      await refcounts.loadBlockOf(cluster);
    }
  }
}

interface Counted {
  readonly cluster: HostCluster;
  /** References that are gone. */
  readonly gone: number;
}

const byBlock = (
  references: ReadonlyMap<HostCluster, number>,
  refcounts: Refcounts,
): ReadonlyMap<number, readonly Counted[]> => {
  const groups = new Map<number, Counted[]>();
  for (const [cluster, gone] of [...references].sort((a, b) => a[0] - b[0])) {
    const index = refcounts.blockIndexOf(cluster);
    const group = groups.get(index);
    if (group === undefined) groups.set(index, [{ cluster, gone }]);
    else group.push({ cluster, gone });
  }
  return groups;
};

/** References that are gone, by cluster: several compressed clusters may have shared one. */
const countReferences = (runs: readonly ClusterRun[]): ReadonlyMap<HostCluster, number> => {
  const references = new Map<HostCluster, number>();
  for (const run of runs) {
    for (let cluster = run.first; cluster < run.first + run.count; cluster++) {
      references.set(cluster, (references.get(cluster) ?? 0) + 1);
    }
  }
  return references;
};

const joined = (runs: readonly ClusterRun[]): ClusterRun[] => {
  const sorted = [...runs].sort((a, b) => a.first - b.first);
  const out: ClusterRun[] = [];
  for (const run of sorted) {
    const last = out.at(-1);
    if (last !== undefined && last.first + last.count === run.first) {
      out[out.length - 1] = { first: last.first, count: last.count + run.count };
    } else out.push(run);
  }
  return out;
};
