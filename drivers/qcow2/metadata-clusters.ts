/**
 * Which host clusters hold the active metadata, so that no damaged entry makes guest data land there and no damaged
 * refcount hands them out (specification: structures must not overlap).
 */

/** `table`: an active L2 table. `other`: header, L1 table, refcount table, refcount blocks. */
export type MetadataKind = 'table' | 'other';

/** More are not kept: the overlap check then covers what was added first. 64 KiB clusters: 512 TiB of disk. */
const MAX_CLUSTERS = 1 << 20;

/** Clusters of one block: neighbours are asked for one after the other. */
const BLOCK_CLUSTERS = 512;
const NONE = 0;
const TABLE = 1;
const OTHER = 2;

export class MetadataClusters {
  readonly #blocks = new Map<number, Uint8Array>();
  #count = 0;
  #lastIndex = -1;
  #lastBlock: Uint8Array | undefined;

  add(cluster: number, kind: MetadataKind): void {
    if (this.#count >= MAX_CLUSTERS) return;
    const index = Math.floor(cluster / BLOCK_CLUSTERS);
    const block = this.#blocks.get(index) ?? new Uint8Array(BLOCK_CLUSTERS);
    this.#blocks.set(index, block);
    this.#lastIndex = -1;
    if (block[cluster % BLOCK_CLUSTERS] === NONE) this.#count++;
    block[cluster % BLOCK_CLUSTERS] = kind === 'table' ? TABLE : OTHER;
  }

  /** `first` to `first + count - 1`. */
  addRun(first: number, count: number, kind: MetadataKind): void {
    for (let i = 0; i < count; i++) this.add(first + i, kind);
  }

  remove(cluster: number): void {
    if (!this.has(cluster)) return;
    this.#count--;
    this.#blocks
      .get(Math.floor(cluster / BLOCK_CLUSTERS))
      ?.fill(NONE, cluster % BLOCK_CLUSTERS, (cluster % BLOCK_CLUSTERS) + 1);
  }

  has(cluster: number): boolean {
    return this.#at(cluster) !== NONE;
  }

  kindOf(cluster: number): MetadataKind | null {
    const kind = this.#at(cluster);
    if (kind === NONE) return null;
    return kind === TABLE ? 'table' : 'other';
  }

  #at(cluster: number): number {
    const index = Math.floor(cluster / BLOCK_CLUSTERS);
    if (index !== this.#lastIndex) {
      this.#lastIndex = index;
      this.#lastBlock = this.#blocks.get(index);
    }
    return this.#lastBlock?.[cluster % BLOCK_CLUSTERS] ?? NONE;
  }
}
