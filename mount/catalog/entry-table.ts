/**
 * The images of a mount and their snapshots by name, node id and file, those included whose name is gone but which are in
 * use.
 */
import { ImageEntry } from './image-entry.ts';
import type { SnapshotEntry } from './snapshot-entry.ts';

/** What a mount shows under one name. */
export type CatalogEntry = ImageEntry | SnapshotEntry;

/** Entries whose name is gone and that are closed, but that a kernel may still ask for. */
const MAX_GONE = 4096;

export class EntryTable {
  readonly #byName = new Map<string, CatalogEntry>();
  readonly #byKey = new Map<string, ImageEntry>();
  readonly #bySnapshotKey = new Map<string, SnapshotEntry>();
  readonly #byIdentity = new Map<string, ImageEntry>();
  readonly #byNodeId = new Map<number, CatalogEntry>();
  readonly #gone = new Set<CatalogEntry>();

  /** Those that have a name, in the order of the sources; an image before its snapshots. */
  get listed(): readonly CatalogEntry[] {
    return [...this.#byName.values()];
  }

  /** The images among the listed. */
  get images(): readonly ImageEntry[] {
    return [...this.#byKey.values()];
  }

  /** Listed ones and those that are gone but not dropped. */
  get all(): readonly CatalogEntry[] {
    return [...this.#byNodeId.values()];
  }

  byName(name: string): CatalogEntry | null {
    return this.#byName.get(name) ?? null;
  }

  /** Of a file by its key (identity and birth), among the listed. */
  byKey(key: string): ImageEntry | null {
    return this.#byKey.get(key) ?? null;
  }

  /** See `snapshotKey`; among the listed. */
  bySnapshotKey(key: string): SnapshotEntry | null {
    return this.#bySnapshotKey.get(key) ?? null;
  }

  byIdentity(identity: string): ImageEntry | null {
    return this.#byIdentity.get(identity) ?? null;
  }

  byNodeId(nodeId: number): CatalogEntry | null {
    return this.#byNodeId.get(nodeId) ?? null;
  }

  /** The new listing; every entry carries its name. Returns the entries that have lost theirs. */
  replace(listed: readonly CatalogEntry[]): CatalogEntry[] {
    const kept = new Set(listed);
    const lost = [...this.#byName.values()].filter((entry) => !kept.has(entry));
    this.#byName.clear();
    this.#byKey.clear();
    this.#bySnapshotKey.clear();
    this.#byIdentity.clear();
    for (const entry of listed) {
      this.#byName.set(entry.name, entry);
      this.#byNodeId.set(entry.nodeId, entry);
      if (entry instanceof ImageEntry) {
        this.#byKey.set(entry.key, entry);
        this.#byIdentity.set(entry.host.identity, entry);
      } else this.#bySnapshotKey.set(entry.key, entry);
    }
    for (const entry of lost) {
      entry.gone = true;
      this.#gone.add(entry);
    }
    return lost;
  }

  /** Forgets an entry that is gone and closed; kept while a kernel may ask for it, within a bound. */
  drop(entry: CatalogEntry): void {
    this.#gone.delete(entry);
    if (this.#byNodeId.get(entry.nodeId) === entry) this.#byNodeId.delete(entry.nodeId);
  }

  /** The oldest of those that are gone and not in use, when there are too many. */
  surplus(): CatalogEntry[] {
    if (this.#gone.size <= MAX_GONE) return [];
    const idle = [...this.#gone].filter((entry) => entry.handles === 0);
    return idle.slice(0, this.#gone.size - MAX_GONE);
  }
}
