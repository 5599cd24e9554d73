/**
 * The bitmap: one bit for each cluster of the image file, the least significant bit of a byte first. Set: the cluster is
 * in the image file. It is cached in tables of 4 KiB, keyed by their offset in the add-cow file.
 */
import { assert } from '../../src/base/assert.ts';
import { alignUp, divideUp } from '../../src/base/range.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { Node } from '../../src/block/node.ts';
import { type CachedTable, TableCache, type TableSnapshot } from '../../src/block/table-cache.ts';

export const TABLE_BYTES = 4096;
const TABLE_BITS = TABLE_BYTES * 8;

/** Neighbouring clusters whose bits are equal. */
export interface BitRun {
  readonly isSet: boolean;
  readonly clusters: number;
}

export interface BitmapOptions {
  readonly file: Node;
  /** Where it begins in the file. */
  readonly startBytes: number;
  readonly clusterBytes: number;
  readonly cacheBytes: number;
}

/** Bytes of a bitmap in the file: whole clusters. */
export const bitmapBytesOf = (clusters: number, clusterBytes: number): number =>
  alignUp(divideUp(clusters, 8), clusterBytes);

export class Bitmap {
  readonly #options: BitmapOptions;
  #tables: TableCache;

  constructor(options: BitmapOptions) {
    this.#options = options;
    this.#tables = this.#createCache();
  }

  get bytes(): number {
    return this.#tables.bytes;
  }

  get dirtyBytes(): number {
    return this.#tables.dirtyBytes;
  }

  /** Copies of the tables that are not in the file as they are; see `write`. */
  snapshotDirty(): TableSnapshot[] {
    return this.#tables.snapshotDirty();
  }

  /** What was written is on disk. */
  written(snapshots: readonly TableSnapshot[]): void {
    for (const snapshot of snapshots) this.#tables.written(snapshot);
  }

  /** The run from `first` on, at most `limit` clusters. At once when its table is in memory. Errors: EIO. */
  run(first: number, limit: number): BitRun | Promise<BitRun> {
    const table = this.#tables.peek(this.#keyOf(first));
    if (table === undefined)
      return this.#tables.get(this.#keyOf(first)).then(() => this.run(first, limit));
    const isSet = bitAt(table.bytes, first % TABLE_BITS);
    let clusters = equalBits(table.bytes, first % TABLE_BITS, limit);
    while (clusters < limit && (first + clusters) % TABLE_BITS === 0) {
      const next = this.#tables.peek(this.#keyOf(first + clusters));
      if (next === undefined || bitAt(next.bytes, 0) !== isSet) break;
      clusters += equalBits(next.bytes, 0, limit - clusters);
    }
    return { isSet, clusters };
  }

  /** Changes the bits of neighbouring clusters, in memory. Errors: EIO. */
  async change(first: number, clusters: number, isSet: boolean): Promise<void> {
    for (let at = first; at < first + clusters; ) {
      const table = await this.#resident(at);
      const index = at % TABLE_BITS;
      const count = Math.min(TABLE_BITS - index, first + clusters - at);
      if (changeBits(table.bytes, index, count, isSet)) this.#tables.changed(table);
      at += count;
    }
  }

  /** Sets the bits of neighbouring clusters in this turn; false when it has to wait for a table, and nothing is set. See `load`. */
  setAtOnce(first: number, clusters: number): boolean {
    const parts = this.#partsOf(first, clusters);
    const tables = parts.map(({ at }) => this.#tables.peek(this.#keyOf(at)));
    if (tables.includes(undefined)) return false;
    for (const [i, { at, count }] of parts.entries()) {
      const table = tables[i];
      if (table !== undefined && changeBits(table.bytes, at % TABLE_BITS, count, true))
        this.#tables.changed(table);
    }
    return true;
  }

  /** The tables of so few clusters that all of them stay in memory together. Errors: EIO. */
  async load(first: number, clusters: number): Promise<void> {
    for (const { at } of this.#partsOf(first, clusters)) await this.#tables.get(this.#keyOf(at));
  }

  /** One for each table. */
  #partsOf(first: number, clusters: number): { readonly at: number; readonly count: number }[] {
    const parts = [];
    for (let at = first; at < first + clusters; ) {
      const count = Math.min(TABLE_BITS - (at % TABLE_BITS), first + clusters - at);
      parts.push({ at, count });
      at += count;
    }
    return parts;
  }

  /** The first cluster from `from` on, before `end`, that is not set; `end` for none. Errors: EIO. */
  async firstClear(from: number, end: number): Promise<number> {
    for (let at = from; at < end; ) {
      const run = await this.run(at, end - at);
      if (!run.isSet) return at;
      at += run.clusters;
    }
    return end;
  }

  /** Set ones before `end`. Errors: EIO. */
  async count(end: number): Promise<number> {
    let set = 0;
    for (let at = 0; at < end; ) {
      const run = await this.run(at, end - at);
      if (run.isSet) set += run.clusters;
      at += run.clusters;
    }
    return set;
  }

  /** Brings a table to the file, as far as a bitmap of so many clusters goes. The caller syncs. */
  async write(snapshot: TableSnapshot, clusters: number): Promise<void> {
    const { file, startBytes, clusterBytes } = this.#options;
    const { key } = snapshot.table;
    const end = startBytes + bitmapBytesOf(clusters, clusterBytes);
    const bytes = snapshot.bytes.subarray(0, Math.max(0, end - key));
    await file.write(guestOffset(key), bytes);
  }

  /** Forgets every table; none is dirty. */
  forget(): void {
    assert(this.#tables.dirtyBytes === 0, 'what is forgotten is in the file');
    this.#tables = this.#createCache();
  }

  #createCache(): TableCache {
    const { file, cacheBytes } = this.#options;
    return new TableCache({
      maxBytes: Math.max(cacheBytes, 4 * TABLE_BYTES),
      load: async (key) => {
        // What the file does not have is not set.
        const bytes = new Uint8Array(TABLE_BYTES);
        await file.readClipped(guestOffset(key), bytes);
        return bytes;
      },
    });
  }

  async #resident(cluster: number): Promise<CachedTable> {
    const key = this.#keyOf(cluster);
    for (;;) {
      // In the turn in which it is changed: who waits for a load may find the table evicted.
      const table = this.#tables.peek(key);
      if (table !== undefined) return table;
      await this.#tables.get(key);
    }
  }

  #keyOf(cluster: number): number {
    return this.#options.startBytes + Math.floor(cluster / TABLE_BITS) * TABLE_BYTES;
  }
}

const bitAt = (bytes: Uint8Array, index: number): boolean =>
  ((bytes[index >>> 3] ?? 0) & (1 << (index & 7))) !== 0;

/** How many bits from `index` on are as that one is, at most `limit`. */
const equalBits = (bytes: Uint8Array, index: number, limit: number): number => {
  const end = Math.min(TABLE_BITS, index + limit);
  const isSet = bitAt(bytes, index);
  const whole = isSet ? 0xff : 0;
  let at = index;
  while (at < end) {
    if ((at & 7) === 0 && bytes[at >>> 3] === whole) at += 8;
    else if (bitAt(bytes, at) === isSet) at++;
    else break;
  }
  return Math.min(at, end) - index;
};

/** False when they were so already. */
const changeBits = (bytes: Uint8Array, index: number, count: number, isSet: boolean): boolean => {
  let isChanged = false;
  for (let at = index; at < index + count; ) {
    const byte = at >>> 3;
    const inByte = at & 7;
    const bits = Math.min(8 - inByte, index + count - at);
    const mask = ((1 << bits) - 1) << inByte;
    const old = bytes[byte] ?? 0;
    const now = isSet ? old | mask : old & ~mask;
    if (now !== old) isChanged = true;
    bytes[byte] = now;
    at += bits;
  }
  return isChanged;
};
