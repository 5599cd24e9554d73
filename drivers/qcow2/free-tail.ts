/**
 * Cuts off the end of the image file when what lies there has been given back.
 *
 * Only clusters that this opening of the image has freed are cut off, and only when a checkpoint has brought their refcount
 * of 0 to the disk: nothing that is on disk names or counts them. While the file is cut nothing is allocated.
 */
import { toBlockError } from '../../src/base/block-error.ts';
import { type HostCluster, hostCluster, hostOffsetOfCluster } from '../../src/base/units.ts';
import type { Allocator } from './allocator.ts';
import type { ImageState } from './state.ts';

/** More are not remembered: the file then stays longer than it need be. */
const MAX_CLUSTERS = 1 << 18;

export class FreeTail {
  readonly #state: ImageState;
  readonly #allocator: Allocator;
  /** Freed since the last checkpoint began. */
  #fresh = new Set<HostCluster>();
  /** Freed, and the running checkpoint writes it. */
  #covered = new Set<HostCluster>();
  /** Freed on disk. Some may be in use again. */
  readonly #ready = new Set<HostCluster>();
  #isOff = false;

  constructor(state: ImageState, allocator: Allocator) {
    this.#state = state;
    this.#allocator = allocator;
  }

  /** Its refcount became 0 in memory in this turn. */
  freed(cluster: HostCluster): void {
    this.#ready.delete(cluster);
    this.#covered.delete(cluster);
    if (this.#fresh.size < MAX_CLUSTERS) this.#fresh.add(cluster);
  }

  /** In the turn in which a checkpoint takes what it will write. */
  begin(): void {
    // Of a checkpoint that failed nothing is known.
    for (const cluster of this.#fresh) this.#covered.add(cluster);
    this.#fresh = new Set();
  }

  /** What the checkpoint took is on disk. Never throws: a file that stays long is sound. */
  async end(): Promise<void> {
    for (const cluster of this.#covered) {
      if (this.#ready.size < MAX_CLUSTERS) this.#ready.add(cluster);
    }
    this.#covered = new Set();
    const { request } = this.#state;
    if (this.#isOff || request.discard !== 'unmap' || this.#ready.size === 0) return;
    try {
      await this.#cut();
    } catch (error) {
      this.#isOff = true;
      const reason = toBlockError(error).describe();
      request.log.warning(request.path, `the file is not made shorter: ${reason}`);
    }
  }

  async #cut(): Promise<void> {
    const { file, clusterBytes, refcounts } = this.#state;
    // A refcount table that moves is written past the end, and is not counted before it is in force.
    while (!this.#allocator.isTableMoving) {
      file.driver.noticeGrowth?.();
      const end = hostCluster(Math.ceil(file.lengthBytes / clusterBytes));
      const found = this.#startOfTail(end);
      if (typeof found !== 'number') await refcounts.loadBlockOf(found.load);
      else {
        if (found === end) return;
        await this.#allocator.paused(() => file.resize(hostOffsetOfCluster(found, clusterBytes)));
        for (const cluster of this.#ready) if (cluster >= found) this.#ready.delete(cluster);
        return;
      }
    }
  }

  /**
   * The first cluster of the file's free end, or one whose refcount block has to be loaded to tell. What was taken and not
   * written yet lies past the end: a worker may be about to write it, and then nothing is cut.
   */
  #startOfTail(end: HostCluster): HostCluster | { readonly load: HostCluster } {
    const { refcounts, metadata } = this.#state;
    const { blockEntries } = refcounts;
    const top = Math.ceil(Math.max(end, this.#allocator.top) / blockEntries) * blockEntries;
    for (let cluster = end; cluster < top; cluster++) {
      const block = refcounts.residentBlock(cluster);
      if (block === null) return { load: cluster };
      if (block !== 'none' && refcounts.read(block, cluster) !== 0) return end;
    }
    let first = end;
    while (first > 0) {
      const cluster = hostCluster(first - 1);
      if (!this.#ready.has(cluster) || metadata.has(cluster)) break;
      const block = refcounts.residentBlock(cluster);
      if (block === null) return { load: cluster };
      if (block === 'none' || refcounts.read(block, cluster) !== 0) break;
      first = cluster;
    }
    return first;
  }
}
