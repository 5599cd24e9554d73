/** The images of a mount by name, node id and file, those included whose name is gone but which are in use. */
import type { ImageEntry } from './image-entry.ts';

/** Entries whose name is gone and that are closed, but that a kernel may still ask for. */
const MAX_GONE = 4096;

export class EntryTable {
  readonly #byName = new Map<string, ImageEntry>();
  readonly #byKey = new Map<string, ImageEntry>();
  readonly #byIdentity = new Map<string, ImageEntry>();
  readonly #byNodeId = new Map<number, ImageEntry>();
  readonly #gone = new Set<ImageEntry>();

  /** Those that have a name, in the order of the sources. */
  get listed(): readonly ImageEntry[] {
    return [...this.#byName.values()];
  }

  /** Listed ones and those that are gone but not dropped. */
  get all(): readonly ImageEntry[] {
    return [...this.#byNodeId.values()];
  }

  byName(name: string): ImageEntry | null {
    return this.#byName.get(name) ?? null;
  }

  /** Of a file by its key (identity and birth), among the listed. */
  byKey(key: string): ImageEntry | null {
    return this.#byKey.get(key) ?? null;
  }

  byIdentity(identity: string): ImageEntry | null {
    return this.#byIdentity.get(identity) ?? null;
  }

  byNodeId(nodeId: number): ImageEntry | null {
    return this.#byNodeId.get(nodeId) ?? null;
  }

  /** The new listing; every entry carries its name. Returns the entries that have lost theirs. */
  replace(listed: readonly ImageEntry[]): ImageEntry[] {
    const lost = [...this.#byName.values()].filter((entry) => !listed.includes(entry));
    this.#byName.clear();
    this.#byKey.clear();
    this.#byIdentity.clear();
    for (const entry of listed) {
      this.#byName.set(entry.name, entry);
      this.#byKey.set(entry.key, entry);
      this.#byIdentity.set(entry.host.identity, entry);
      this.#byNodeId.set(entry.nodeId, entry);
    }
    for (const entry of lost) {
      entry.gone = true;
      this.#gone.add(entry);
    }
    return lost;
  }

  /** Forgets an entry that is gone and closed; kept while a kernel may ask for it, within a bound. */
  drop(entry: ImageEntry): void {
    this.#gone.delete(entry);
    if (this.#byNodeId.get(entry.nodeId) === entry) this.#byNodeId.delete(entry.nodeId);
  }

  /** The oldest of those that are gone and not in use, when there are too many. */
  surplus(): ImageEntry[] {
    if (this.#gone.size <= MAX_GONE) return [];
    const idle = [...this.#gone].filter((entry) => entry.handles === 0);
    return idle.slice(0, this.#gone.size - MAX_GONE);
  }
}
