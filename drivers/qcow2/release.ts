/**
 * Gives back clusters that were unmapped, once that is on disk: waits until no request uses them any more, counts them
 * down, punches what nobody uses out of the host file, and only then lets the allocator have it.
 *
 * It runs beside everything else; `close` waits for it.
 */
import { toBlockError } from '../../src/base/block-error.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { Allocator, ClusterRun } from './allocator.ts';
import type { CompressedClusters } from './compressed.ts';
import type { Change } from './journal-records.ts';
import type { ImageState } from './state.ts';

export class Releases {
  readonly #state: ImageState;
  readonly #allocator: Allocator;
  readonly #compressed: CompressedClusters;
  readonly #running = new Set<Promise<void>>();

  constructor(state: ImageState, allocator: Allocator, compressed: CompressedClusters) {
    this.#state = state;
    this.#allocator = allocator;
    this.#compressed = compressed;
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
    const { request, clusterBytes, file } = this.#state;
    await request.quiesce();
    const free: ClusterRun[] = [];
    for (const run of runs) {
      const { changes, freed } = await this.#countDown(run);
      await this.#state.record(changes);
      free.push(...freed);
    }
    this.#compressed.forget();
    for (const run of joined(free)) {
      if (request.discard === 'unmap') {
        // Past the end of the file there is nothing to punch.
        const start = run.first * clusterBytes;
        const bytes = Math.min(run.count * clusterBytes, file.lengthBytes - start);
        if (bytes > 0) await file.discard(guestOffset(start), bytes);
      }
      this.#allocator.free(run);
    }
  }

  async #countDown(run: ClusterRun): Promise<{ changes: Change[]; freed: ClusterRun[] }> {
    const { refcounts, request } = this.#state;
    const changes: Change[] = [];
    const freed: ClusterRun[] = [];
    for (let cluster = run.first; cluster < run.first + run.count; cluster++) {
      let block = refcounts.residentBlock(cluster);
      while (block === null) {
        await refcounts.loadBlockOf(cluster);
        block = refcounts.residentBlock(cluster);
      }
      const count = block === 'none' ? 0 : refcounts.read(block, cluster);
      if (block === 'none' || count === 0) {
        request.log.error(
          request.path,
          `refcount of host cluster ${cluster} is 0 already: the image needs a check`,
        );
        continue;
      }
      changes.push(refcounts.set(block, cluster, count - 1));
      if (count === 1) freed.push({ first: cluster, count: 1 });
    }
    return { changes, freed };
  }
}

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
