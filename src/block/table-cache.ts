/**
 * A cache of metadata tables (L2 slices, refcount blocks, bitmap tables), bounded in bytes, keyed by host offset.
 *
 * Clean tables are evicted least recently used first; a dirty one stays until what it holds is on disk. Two misses of
 * one table share one load. A table that somebody holds across an await may have been evicted and loaded anew: who
 * changes one gets it and changes it in the same turn of the event loop. Until the turn ends an evicted table is still the
 * one that everybody gets: between getting and changing it lie promises of others, which may evict it and ask for it again.
 *
 * Who only looks something up takes a `glance`. In a full cache a table that can be read without waiting then comes in with its second
 * glance: until that one it is on trial, in a single place, whose memory the next one is read into. What is looked at once drives nothing out
 * and takes no memory: making and forgetting it costs more than reading 4 KiB again.
 */
import { LRUCache } from 'lru-cache';
import { assert } from '../base/assert.ts';
import { viewOf } from '../base/byte-order.ts';
import { Ghosts } from '../base/ghosts.ts';

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
  readonly atOnce?: LoadAtOnce;
}

export interface LoadAtOnce {
  /** Of each table. */
  readonly tableBytes: number;
  /** Fills all of the bytes without waiting; false when it has to wait, and they hold anything. */
  readonly load: (key: number, bytes: Uint8Array) => boolean;
}

/** The place of a table that has been glanced at once. */
interface Trial {
  /** -1: none. */
  key: number;
  readonly bytes: Uint8Array;
  readonly view: DataView;
  changes: number;
}

const NO_TABLE = -1;

export class TableCache {
  readonly #options: TableCacheOptions;
  readonly #clean: LRUCache<number, CachedTable>;
  /** Beside the table that is on trial. */
  readonly #maxCleanBytes: number;
  readonly #dirty = new Map<number, CachedTable>();
  readonly #loading = new Map<number, Promise<CachedTable>>();
  /** Made when the cache is full. */
  #trial: Trial | null = null;
  #glanced: Ghosts | null = null;
  /** Evicted in this turn. */
  readonly #leaving = new Map<number, CachedTable>();
  #dirtyBytes = 0;

  constructor(options: TableCacheOptions) {
    this.#options = options;
    this.#maxCleanBytes = Math.max(1, options.maxBytes - (options.atOnce?.tableBytes ?? 0));
    this.#clean = new LRUCache({
      maxSize: this.#maxCleanBytes,
      sizeCalculation: (table) => table.bytes.length,
      dispose: (table, key, reason) => {
        if (reason === 'evict') this.#leave(key, table);
      },
    });
  }

  get dirtyBytes(): number {
    return this.#dirtyBytes;
  }

  /** Of all tables in memory. */
  get bytes(): number {
    return this.#dirtyBytes + this.#clean.calculatedSize + (this.#trial?.bytes.length ?? 0);
  }

  /** The table when it is in memory. */
  peek(key: number): CachedTable | undefined {
    return this.#dirty.get(key) ?? this.#clean.get(key) ?? this.#leaving.get(key);
  }

  /** The table when it is in memory, or can be read without waiting. */
  getAtOnce(key: number): CachedTable | undefined {
    const known = this.peek(key);
    // What is being loaded is put there by who loads it.
    if (known !== undefined || this.#loading.has(key)) return known;
    const { atOnce } = this.#options;
    if (atOnce === undefined) return undefined;
    const bytes = new Uint8Array(atOnce.tableBytes);
    if (!atOnce.load(key, bytes)) return undefined;
    const table: CachedTable = { key, bytes, view: viewOf(bytes), changes: 0 };
    this.#clean.set(key, table);
    return table;
  }

  /** As `getAtOnce`, for reading alone: the next glance may overwrite what the table holds. */
  glance(key: number): CachedTable | undefined {
    const { atOnce } = this.#options;
    if (atOnce === undefined || !this.#isFull(atOnce)) return this.getAtOnce(key);
    const known = this.peek(key) ?? (this.#trial?.key === key ? this.#trial : undefined);
    if (known !== undefined || this.#loading.has(key)) return known;
    this.#glanced ??= new Ghosts((2 * this.#options.maxBytes) / atOnce.tableBytes);
    if (this.#glanced.take(key)) return this.getAtOnce(key);
    const trial = this.#trialPlace(atOnce);
    trial.key = NO_TABLE;
    if (!atOnce.load(key, trial.bytes)) return undefined;
    trial.key = key;
    return trial;
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
    assert(table !== this.#trial, 'what was glanced at is not changed');
    table.changes++;
    this.#endTrial(table.key);
    const kept = this.#dirty.get(table.key) ?? this.#clean.peek(table.key);
    assert(kept === undefined || kept === table, 'who changes a table has the one that is kept');
    if (this.#dirty.has(table.key)) return;
    this.#clean.delete(table.key);
    this.#leaving.delete(table.key);
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
    this.#leaving.delete(key);
    this.#loading.delete(key);
    this.#endTrial(key);
  }

  /** Forgets every table; none may be dirty. */
  clear(): void {
    assert(this.#dirty.size === 0, 'tables that are not on disk are not forgotten');
    this.#clean.clear();
    this.#leaving.clear();
    this.#loading.clear();
    this.#trial = null;
  }

  #isFull({ tableBytes }: LoadAtOnce): boolean {
    return this.#clean.calculatedSize + tableBytes > this.#maxCleanBytes;
  }

  #trialPlace({ tableBytes }: LoadAtOnce): Trial {
    // Shared memory does not move: it is read into without a copy in between (drivers/file/quick-io.ts).
    const bytes = this.#trial?.bytes ?? new Uint8Array(new SharedArrayBuffer(tableBytes));
    this.#trial ??= { key: NO_TABLE, bytes, view: viewOf(bytes), changes: 0 };
    return this.#trial;
  }

  /** What the image says there is about to be something else. */
  #endTrial(key: number): void {
    if (this.#trial?.key === key) this.#trial.key = NO_TABLE;
  }

  #leave(key: number, table: CachedTable): void {
    if (this.#leaving.size === 0) setImmediate(() => this.#leaving.clear());
    this.#leaving.set(key, table);
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
