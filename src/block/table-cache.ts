/**
 * A cache of metadata tables (L2 slices, refcount blocks, bitmap tables), bounded in bytes, keyed by host offset.
 *
 * Clean tables are evicted least recently used first; a dirty one stays until what it holds is on disk. Two misses of
 * one table share one load. A table that somebody holds across an await may have been evicted and loaded anew: who
 * changes one gets it and changes it in the same turn of the event loop.
 */
import { LRUCache } from 'lru-cache';
import { assert } from '../base/assert.ts';
import { viewOf } from '../base/byte-order.ts';

export interface CachedTable {
  /** Host offset. */
  readonly key: number;
  readonly bytes: Uint8Array;
  readonly view: DataView;
  /** Goes up with each change; a checkpoint compares it to see what it has written. */
  changes: number;
}

/** What a checkpoint writes: the table as it was at one moment. */
export interface TableSnapshot {
  readonly table: CachedTable;
  readonly bytes: Uint8Array;
  readonly changes: number;
}

export interface TableCacheOptions {
  /** Of clean and dirty tables together; dirty ones alone may pass it. */
  readonly maxBytes: number;
  readonly load: (key: number) => Promise<Uint8Array>;
  /** `load` without waiting; null when it has to. */
  readonly loadAtOnce?: (key: number) => Uint8Array | null;
}

export class TableCache {
  readonly #options: TableCacheOptions;
  readonly #clean: LRUCache<number, CachedTable>;
  readonly #dirty = new Map<number, CachedTable>();
  readonly #loading = new Map<number, Promise<CachedTable>>();
  #dirtyBytes = 0;

  constructor(options: TableCacheOptions) {
    this.#options = options;
    this.#clean = new LRUCache({
      maxSize: Math.max(1, options.maxBytes),
      sizeCalculation: (table) => table.bytes.length,
    });
  }

  get dirtyBytes(): number {
    return this.#dirtyBytes;
  }

  /** Of all tables in memory. */
  get bytes(): number {
    return this.#dirtyBytes + this.#clean.calculatedSize;
  }

  /** The table when it is in memory. */
  peek(key: number): CachedTable | undefined {
    return this.#dirty.get(key) ?? this.#clean.get(key);
  }

  /** The table when it is in memory, or can be read without waiting. */
  getAtOnce(key: number): CachedTable | undefined {
    const known = this.peek(key);
    // What is being loaded is put there by who loads it.
    if (known !== undefined || this.#loading.has(key)) return known;
    const bytes = this.#options.loadAtOnce?.(key) ?? null;
    if (bytes === null) return undefined;
    const table: CachedTable = { key, bytes, view: viewOf(bytes), changes: 0 };
    this.#clean.set(key, table);
    return table;
  }

  /** Errors: those of `load`, for every caller that waited; the next one tries again. */
  async get(key: number): Promise<CachedTable> {
    return this.peek(key) ?? this.#loading.get(key) ?? this.#load(key);
  }

  /** Puts a table that is new, or known without reading. It is dirty. */
  put(key: number, bytes: Uint8Array): CachedTable {
    this.drop(key);
    const table: CachedTable = { key, bytes, view: viewOf(bytes), changes: 0 };
    this.changed(table);
    return table;
  }

  /** Call it right after changing a table's bytes. */
  changed(table: CachedTable): void {
    table.changes++;
    if (this.#dirty.has(table.key)) return;
    this.#clean.delete(table.key);
    this.#dirty.set(table.key, table);
    this.#dirtyBytes += table.bytes.length;
  }

  /** Copies of all dirty tables. They stay dirty until `written`. */
  snapshotDirty(): TableSnapshot[] {
    return [...this.#dirty.values()].map((table) => ({
      table,
      bytes: table.bytes.slice(),
      changes: table.changes,
    }));
  }

  /** The snapshot is on disk: its table is clean unless it has changed since. */
  written(snapshot: TableSnapshot): void {
    const { table, changes } = snapshot;
    if (table.changes !== changes || this.#dirty.get(table.key) !== table) return;
    this.#dirty.delete(table.key);
    this.#dirtyBytes -= table.bytes.length;
    this.#clean.set(table.key, table);
  }

  /** Forgets a table, dirty or not: its place means something else now. */
  drop(key: number): void {
    const dirty = this.#dirty.get(key);
    if (dirty !== undefined) {
      this.#dirty.delete(key);
      this.#dirtyBytes -= dirty.bytes.length;
    }
    this.#clean.delete(key);
    this.#loading.delete(key);
  }

  /** Forgets every table; none may be dirty. */
  clear(): void {
    assert(this.#dirty.size === 0, 'tables that are not on disk are not forgotten');
    this.#clean.clear();
    this.#loading.clear();
  }

  #load(key: number): Promise<CachedTable> {
    const loading: Promise<CachedTable> = this.#options.load(key).then(
      (bytes) => {
        // `put` or `drop` may have come in between: then what was read is old.
        if (this.#loading.get(key) !== loading) return this.get(key);
        this.#loading.delete(key);
        const table: CachedTable = { key, bytes, view: viewOf(bytes), changes: 0 };
        this.#clean.set(key, table);
        return table;
      },
      (error: unknown) => {
        if (this.#loading.get(key) === loading) this.#loading.delete(key);
        throw error;
      },
    );
    this.#loading.set(key, loading);
    return loading;
  }
}
