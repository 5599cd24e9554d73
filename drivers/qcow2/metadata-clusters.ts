/**
 * Which host clusters hold the active metadata, so that no damaged entry makes guest data land there and no damaged
 * refcount hands them out (specification: structures must not overlap).
 */

/** `table`: an active L2 table. `other`: header, L1 table, refcount table, refcount blocks. */
export type MetadataKind = 'table' | 'other';

/** More are not kept: the overlap check then covers what was added first. 64 KiB clusters: 512 TiB of disk. */
const MAX_CLUSTERS = 1 << 20;

export class MetadataClusters {
  readonly #kinds = new Map<number, MetadataKind>();

  add(cluster: number, kind: MetadataKind): void {
    if (this.#kinds.size < MAX_CLUSTERS) this.#kinds.set(cluster, kind);
  }

  /** `first` to `first + count - 1`. */
  addRun(first: number, count: number, kind: MetadataKind): void {
    for (let i = 0; i < count; i++) this.add(first + i, kind);
  }

  remove(cluster: number): void {
    this.#kinds.delete(cluster);
  }

  has(cluster: number): boolean {
    return this.#kinds.has(cluster);
  }

  kindOf(cluster: number): MetadataKind | null {
    return this.#kinds.get(cluster) ?? null;
  }
}
