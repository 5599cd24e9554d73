/**
 * The mapping of guest clusters (specification: "Cluster mapping"): the L1 table, in memory as a whole (32 MiB at most),
 * and L2 tables, through a cache of slices.
 *
 * It owns the entries in memory: which L1 words and L2 slices are dirty, and what the content of L2 tables is that are
 * not on disk yet. What to map where is decided by its users; when it is written, by checkpoint.ts.
 */

import { invalidImage } from '../../src/base/block-error.ts';
import { viewOf } from '../../src/base/byte-order.ts';
import { guestOffset, hostCluster } from '../../src/base/units.ts';
import { readAtOnce } from '../../src/block/at-once.ts';
import type { Node } from '../../src/block/node.ts';
import { type CachedTable, TableCache } from '../../src/block/table-cache.ts';
import { corruption } from './corruption.ts';
import {
  copiedEntry,
  entryHex,
  entryOffset,
  hasSameFlags,
  isCopied,
  type L2Entry,
  type TableEntry,
} from './entry.ts';
import { bytesPerL1Entry, type Qcow2Header } from './header.ts';
import type { Change } from './journal-records.ts';
import { ENTRY_BYTES } from './layout.ts';
import type { MetadataClusters } from './metadata-clusters.ts';

const MAX_SLICE_BYTES = 4096;

export interface L1Word {
  readonly index: number;
  readonly at: number;
  readonly entry: TableEntry;
}

/** Where a guest offset's entry lies. */
export interface EntryPlace {
  readonly l1Index: number;
  /** Of the first byte of its slice within its L2 table. */
  readonly sliceStart: number;
  /** Of the entry within the slice. */
  readonly index: number;
}

export interface ClusterMapOptions {
  readonly file: Node;
  readonly path: string;
  readonly header: Qcow2Header;
  readonly cacheBytes: number;
  /** The L1 table's place and size, when they are not the header's (a snapshot's table). */
  readonly l1?: { readonly offset: number; readonly entries: number };
  readonly metadata: MetadataClusters;
}

export class ClusterMap {
  readonly slices: TableCache;
  readonly sliceBytes: number;
  readonly sliceEntries: number;
  /** Of an L2 entry: 16 where clusters have subclusters, else 8. */
  readonly entryBytes: number;
  readonly hasSubclusters: boolean;
  /** Guest bytes of one L2 table. */
  readonly tableSpanBytes: number;
  /** L2 tables that are not on disk yet, by host offset: what they held when they were made. Null: zeros. */
  readonly newTables = new Map<number, Uint8Array | null>();
  readonly #options: ClusterMapOptions;
  readonly #clusterBytes: number;
  #l1: DataView;
  #l1Offset: number;
  readonly #dirtyL1 = new Set<number>();

  private constructor(options: ClusterMapOptions, l1: DataView, l1Offset: number) {
    const { header, cacheBytes } = options;
    this.#options = options;
    this.#l1 = l1;
    this.#l1Offset = l1Offset;
    this.#clusterBytes = header.clusterBytes;
    this.sliceBytes = Math.min(MAX_SLICE_BYTES, header.clusterBytes);
    this.entryBytes = header.l2EntryBytes;
    this.hasSubclusters = header.subclusterBytes < header.clusterBytes;
    this.sliceEntries = this.sliceBytes / this.entryBytes;
    this.tableSpanBytes = bytesPerL1Entry(header);
    this.slices = new TableCache({
      maxBytes: Math.max(cacheBytes, 4 * this.sliceBytes),
      load: (offset) => this.#loadSlice(offset),
      atOnce: {
        tableBytes: this.sliceBytes,
        load: (offset, bytes) => this.#loadSliceAtOnce(offset, bytes),
      },
    });
  }

  /** Errors: EIO for an L1 entry that points nowhere. */
  static async open(options: ClusterMapOptions): Promise<ClusterMap> {
    const { file, header } = options;
    const offset = options.l1?.offset ?? header.l1Offset;
    const entries = options.l1?.entries ?? header.l1Entries;
    const bytes = new Uint8Array(entries * ENTRY_BYTES);
    if (entries > 0) await file.readClipped(guestOffset(offset), bytes);
    return new ClusterMap(options, viewOf(bytes), offset);
  }

  get l1Entries(): number {
    return this.#l1.byteLength / ENTRY_BYTES;
  }

  get l1Offset(): number {
    return this.#l1Offset;
  }

  get isL1Dirty(): boolean {
    return this.#dirtyL1.size > 0;
  }

  l1Entry(index: number): TableEntry {
    const at = index * ENTRY_BYTES;
    if (at >= this.#l1.byteLength) return { high: 0, low: 0 };
    return { high: this.#l1.getUint32(at), low: this.#l1.getUint32(at + 4) };
  }

  /** Host offset of an L2 table; 0 for none. Errors: EIO for an entry that points nowhere. */
  tableOffset(l1Index: number): number {
    const { high, low } = this.l1Entry(l1Index);
    const offset = entryOffset(high, low);
    if (offset === 0) return 0;
    const { file, path, metadata } = this.#options;
    if (this.newTables.has(offset)) return offset;
    const cluster = offset / this.#clusterBytes;
    const isPastEnd = offset >= file.lengthBytes;
    if (
      Number.isInteger(cluster) &&
      !isPastEnd &&
      metadata.kindOf(hostCluster(cluster)) !== 'other'
    )
      return offset;
    const entry = `L1 entry ${l1Index} is ${entryHex(high, low)}`;
    const context = { path, offset: this.#l1Offset + l1Index * ENTRY_BYTES };
    if (!Number.isInteger(cluster))
      throw corruption(`${entry}, not a multiple of the cluster size`, context);
    if (isPastEnd) throw invalidImage(`${entry}, past the end of the file`, context);
    throw corruption(`${entry}, where other metadata lies`, context);
  }

  /** Whether the active table alone uses the L2 table, so that it may be changed in place. */
  isTableOwned(l1Index: number): boolean {
    return isCopied(this.l1Entry(l1Index).high);
  }

  place(offset: number): EntryPlace {
    const l1Index = Math.floor(offset / this.tableSpanBytes);
    const entry = Math.floor((offset - l1Index * this.tableSpanBytes) / this.#clusterBytes);
    const index = entry % this.sliceEntries;
    return { l1Index, sliceStart: (entry - index) * this.entryBytes, index };
  }

  /** Guest offset at which the L2 slice ends that has the entry of this one. */
  sliceEnd(offset: number): number {
    const span = this.sliceEntries * this.#clusterBytes;
    return offset - (offset % span) + span;
  }

  /** Which subcluster of its cluster a guest offset lies in; 0 without subclusters. */
  subclusterOf(offset: number): number {
    return Math.floor((offset % this.#clusterBytes) / this.#options.header.subclusterBytes);
  }

  /** One entry of a slice. */
  entry({ view }: CachedTable, index: number): L2Entry {
    const at = index * this.entryBytes;
    const [high, low] = [view.getUint32(at), view.getUint32(at + 4)];
    if (!this.hasSubclusters) return { high, low, zeroes: 0, allocated: 0 };
    return { high, low, zeroes: view.getUint32(at + 8), allocated: view.getUint32(at + 12) };
  }

  setL1(index: number, now: TableEntry): Change {
    const old = this.l1Entry(index);
    this.#l1.setUint32(index * ENTRY_BYTES, now.high);
    this.#l1.setUint32(index * ENTRY_BYTES + 4, now.low);
    this.#dirtyL1.add(index);
    return { kind: 'word', at: this.#l1Offset + index * ENTRY_BYTES, old, now };
  }

  /** A new L2 table: zeros, or a copy of another. It reaches the disk with the next checkpoint. */
  addTable(tableOffset: number, content: Uint8Array | null): void {
    this.newTables.set(tableOffset, content);
    for (let start = 0; start < this.#clusterBytes; start += this.sliceBytes)
      this.slices.drop(tableOffset + start);
  }

  /** How many entries from `index` on, `limit` at most, say nothing at all: unallocated, without a place. */
  emptyRun({ view }: CachedTable, index: number, limit: number): number {
    const words = this.entryBytes / 4;
    const from = index * words;
    const end = Math.min(index + limit, this.sliceEntries) * words;
    let word = from;
    while (word < end && view.getUint32(word * 4) === 0) word++;
    return Math.floor((word - from) / words);
  }

  /** What `mapRun` would change. */
  runChange(slice: CachedTable, index: number, count: number, hostOffset: number): Change {
    const at = slice.key + index * ENTRY_BYTES;
    return { kind: 'mapped', at, count, hostOffset, clusterBytes: this.#clusterBytes };
  }

  /** Maps neighbouring entries that were empty to clusters side by side; of an image without subclusters. */
  mapRun(slice: CachedTable, index: number, count: number, hostOffset: number): Change {
    for (let i = 0; i < count; i++) {
      const { high, low } = copiedEntry(hostOffset + i * this.#clusterBytes);
      slice.view.setUint32((index + i) * ENTRY_BYTES, high);
      slice.view.setUint32((index + i) * ENTRY_BYTES + 4, low);
    }
    this.slices.changed(slice);
    return this.runChange(slice, index, count, hostOffset);
  }

  /**
   * How many entries from `index` on, `limit` at most, say the same as the first, each of the cluster that follows the one before on the
   * host; of an image without subclusters, and a first entry that has a place.
   */
  contiguousRun({ view }: CachedTable, index: number, limit: number): number {
    const high = view.getUint32(index * ENTRY_BYTES);
    const low = view.getUint32(index * ENTRY_BYTES + 4);
    const first = entryOffset(high, low);
    const end = Math.min(limit, this.sliceEntries - index);
    let count = 1;
    for (; count < end; count++) {
      const at = (index + count) * ENTRY_BYTES;
      const [nextHigh, nextLow] = [view.getUint32(at), view.getUint32(at + 4)];
      if (entryOffset(nextHigh, nextLow) !== first + count * this.#clusterBytes) break;
      if (!hasSameFlags(nextHigh, nextLow, high, low)) break;
    }
    return count;
  }

  /** What `setEntry` would change. */
  entryChange(slice: CachedTable, index: number, now: L2Entry): Change {
    const at = slice.key + index * this.entryBytes;
    const old = this.entry(slice, index);
    return { kind: this.hasSubclusters ? 'extended' : 'word', at, old, now };
  }

  /** One entry of a slice that was got in this turn. */
  setEntry(slice: CachedTable, index: number, now: L2Entry): Change {
    const at = index * this.entryBytes;
    const change = this.entryChange(slice, index, now);
    slice.view.setUint32(at, now.high);
    slice.view.setUint32(at + 4, now.low);
    this.slices.changed(slice);
    if (!this.hasSubclusters) return change;
    slice.view.setUint32(at + 8, now.zeroes);
    slice.view.setUint32(at + 12, now.allocated);
    return change;
  }

  /** The dirty L1 words as they are now. They stay dirty until `l1Written`. */
  dirtyL1(): L1Word[] {
    return [...this.#dirtyL1]
      .sort((a, b) => a - b)
      .map((index) => ({
        index,
        at: this.#l1Offset + index * ENTRY_BYTES,
        entry: this.l1Entry(index),
      }));
  }

  l1Written(words: readonly L1Word[]): void {
    for (const { index, entry } of words) {
      const now = this.l1Entry(index);
      if (now.high === entry.high && now.low === entry.low) this.#dirtyL1.delete(index);
    }
  }

  /** The L1 table's bytes, with room for `entries`. */
  enlargedL1(entries: number): Uint8Array {
    const bytes = new Uint8Array(entries * ENTRY_BYTES);
    bytes.set(new Uint8Array(this.#l1.buffer, this.#l1.byteOffset, this.#l1.byteLength));
    return bytes;
  }

  /** The larger table is on disk at its new place, and the header says so. */
  moveL1(offset: number, bytes: Uint8Array): void {
    this.#l1 = viewOf(bytes);
    this.#l1Offset = offset;
    this.#dirtyL1.clear();
  }

  async #loadSlice(offset: number): Promise<Uint8Array> {
    const bytes = new Uint8Array(this.sliceBytes);
    if (!this.#fillFromNew(offset, bytes))
      await this.#options.file.readClipped(guestOffset(offset), bytes);
    return bytes;
  }

  #loadSliceAtOnce(offset: number, bytes: Uint8Array): boolean {
    return this.#fillFromNew(offset, bytes) || readAtOnce(this.#options.file, offset, bytes);
  }

  /** A slice of a table that is not on disk yet. False: it is. */
  #fillFromNew(offset: number, bytes: Uint8Array): boolean {
    const tableOffset = offset - (offset % this.#clusterBytes);
    const content = this.newTables.get(tableOffset);
    if (content === undefined) return false;
    const inTable = offset - tableOffset;
    if (content === null) bytes.fill(0);
    else bytes.set(content.subarray(inTable, inTable + bytes.length));
    return true;
  }
}
