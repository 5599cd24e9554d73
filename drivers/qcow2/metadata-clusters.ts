/**
 * Which host clusters hold metadata, so that no damaged entry makes guest data land there and no damaged refcount hands them
 * out (specification: structures must not overlap).
 *
 * What the image uses now and what its snapshots keep are told apart: a snapshot may share an L2 table with the active L1
 * table, and goes on keeping it when that one gets a copy.
 */
import { type HostCluster, hostCluster } from '../../src/base/units.ts';

/**
 * `table`: an L2 table. `other`: header, L1 tables, refcount table, refcount blocks, snapshot table, and all that bitmaps
 * consist of.
 */
export type MetadataKind = 'table' | 'other';

/** More are not kept: the overlap check then covers what was added first. 64 KiB clusters: 512 TiB of disk. */
const MAX_CLUSTERS = 1 << 20;

/** Clusters of one block: neighbours are asked for one after the other. */
const BLOCK_CLUSTERS = 512;
const TABLE = 1;
const OTHER = 2;
const SAVED_TABLE = 4;
const SAVED_OTHER = 8;
const ACTIVE = TABLE | OTHER;
const SAVED = SAVED_TABLE | SAVED_OTHER;

export class MetadataClusters {
  readonly #blocks = new Map<number, Uint8Array>();
  #count = 0;
  #savedCount = 0;
  #claimedTwice: HostCluster | null = null;
  #lastIndex = -1;
  #lastBlock: Uint8Array | undefined;

  add(cluster: HostCluster, kind: MetadataKind): void {
    const bits = this.#at(cluster);
    if (bits === 0 && this.#count >= MAX_CLUSTERS) return;
    this.#put(cluster, (bits & SAVED) | (kind === 'table' ? TABLE : OTHER));
  }

  /** `first` to `first + count - 1`. */
  addRun(first: HostCluster, count: number, kind: MetadataKind): void {
    for (let i = 0; i < count; i++) this.add(hostCluster(first + i), kind);
  }

  /** As `addRun`, of tables that are read from the image: what lies there already is remembered as a conflict. */
  claimRun(first: HostCluster, count: number): void {
    for (let cluster = first; cluster < first + count; cluster++) {
      if (this.has(cluster)) this.#claimedTwice ??= cluster;
      this.add(cluster, 'other');
    }
  }

  /** It is none of the active metadata any more. */
  remove(cluster: HostCluster): void {
    const bits = this.#at(cluster);
    if ((bits & ACTIVE) !== 0) this.#put(cluster, bits & SAVED);
  }

  /** Active metadata. */
  has(cluster: HostCluster): boolean {
    return (this.#at(cluster) & ACTIVE) !== 0;
  }

  /** Of active metadata; null for none. */
  kindOf(cluster: HostCluster): MetadataKind | null {
    const bits = this.#at(cluster);
    if ((bits & ACTIVE) === 0) return null;
    return (bits & TABLE) !== 0 ? 'table' : 'other';
  }

  /** A snapshot keeps it. */
  addSaved(cluster: HostCluster, kind: MetadataKind): void {
    const bits = this.#at(cluster);
    if (bits === 0 && this.#count >= MAX_CLUSTERS) return;
    if ((bits & SAVED) === 0) this.#savedCount++;
    this.#put(cluster, bits | (kind === 'table' ? SAVED_TABLE : SAVED_OTHER));
  }

  /** Nothing is known of what snapshots keep. */
  clearSaved(): void {
    if (this.#savedCount === 0) return;
    this.#savedCount = 0;
    for (const [index, block] of this.#blocks) {
      for (const [i, bits] of block.entries())
        if ((bits & SAVED) !== 0) this.#put(hostCluster(index * BLOCK_CLUSTERS + i), bits & ACTIVE);
    }
  }

  /** Kept by a snapshot: nothing may be written there. */
  isSaved(cluster: HostCluster): boolean {
    return this.#savedCount > 0 && (this.#at(cluster) & SAVED) !== 0;
  }

  /** Active or kept by a snapshot. */
  isAny(cluster: HostCluster): boolean {
    return this.#at(cluster) !== 0;
  }

  /** How many clusters from `first` on, `count` at most, are no metadata of either kind. */
  freeOf(first: HostCluster, count: number): number {
    const end = first + count;
    for (let at: number = first; at < end; ) {
      const inBlock = at % BLOCK_CLUSTERS;
      const next = Math.min(end, at - inBlock + BLOCK_CLUSTERS);
      const block = this.#blocks.get((at - inBlock) / BLOCK_CLUSTERS);
      for (let i = inBlock; block !== undefined && i < inBlock + next - at; i++)
        if (block[i] !== 0) return at - first + i - inBlock;
      at = next;
    }
    return count;
  }

  /**
   * A cluster that two structures lie in, both of the active metadata, or one of a snapshot's; null for none. L2 tables may be
   * shared with snapshots.
   */
  conflict(): HostCluster | null {
    if (this.#claimedTwice !== null || this.#savedCount === 0) return this.#claimedTwice;
    for (const [index, block] of this.#blocks) {
      for (const [i, bits] of block.entries()) {
        const isOwn = (bits & OTHER) !== 0 && (bits & SAVED) !== 0;
        if (isOwn || (bits & (TABLE | SAVED_OTHER)) === (TABLE | SAVED_OTHER))
          return hostCluster(index * BLOCK_CLUSTERS + i);
      }
    }
    return null;
  }

  #put(cluster: HostCluster, bits: number): void {
    const index = Math.floor(cluster / BLOCK_CLUSTERS);
    let block = this.#blocks.get(index);
    if (block === undefined) {
      block = new Uint8Array(BLOCK_CLUSTERS);
      this.#blocks.set(index, block);
      this.#lastIndex = -1;
    }
    const at = cluster % BLOCK_CLUSTERS;
    if (block[at] === 0 && bits !== 0) this.#count++;
    if (block[at] !== 0 && bits === 0) this.#count--;
    block[at] = bits;
  }

  #at(cluster: HostCluster): number {
    const index = Math.floor(cluster / BLOCK_CLUSTERS);
    if (index !== this.#lastIndex) {
      this.#lastIndex = index;
      this.#lastBlock = this.#blocks.get(index);
    }
    return this.#lastBlock?.[cluster % BLOCK_CLUSTERS] ?? 0;
  }
}
