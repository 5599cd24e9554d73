/**
 * Refcounts (specification: "Host cluster management"): the refcount table, in memory as a whole (8 MiB at most), and
 * refcount blocks, through a cache.
 *
 * It owns which blocks exist and which words of the table are dirty. Nothing here decides when anything is written:
 * checkpoint.ts does, with `snapshot`.
 */
import { assert } from '../../src/base/assert.ts';
import { BlockError } from '../../src/base/block-error.ts';
import { readU64BE, viewOf } from '../../src/base/byte-order.ts';
import { isAligned } from '../../src/base/range.ts';
import { guestOffset, type HostCluster, hostCluster } from '../../src/base/units.ts';
import type { OpenRequest } from '../../src/block/driver.ts';
import type { Node } from '../../src/block/node.ts';
import { type CachedTable, TableCache } from '../../src/block/table-cache.ts';
import { hex } from './entry.ts';
import type { Qcow2Header } from './header.ts';
import type { Change } from './journal-records.ts';
import { ENTRY_BYTES } from './layout.ts';

const TWO_32 = 2 ** 32;

export class Refcounts {
  readonly cache: TableCache;
  readonly blockEntries: number;
  readonly max: number;
  readonly #file: Node;
  readonly #path: string;
  readonly #clusterBytes: number;
  readonly #bits: number;
  #tableOffset: number;
  /** Offsets of refcount blocks by index; 0 for none. */
  #table: Float64Array;
  readonly #dirtyWords = new Set<number>();

  private constructor(
    file: Node,
    header: Qcow2Header,
    table: Float64Array,
    path: string,
    cacheBytes: number,
  ) {
    this.#file = file;
    this.#path = path;
    this.#clusterBytes = header.clusterBytes;
    this.#bits = header.refcountBits;
    this.blockEntries = (header.clusterBytes * 8) / header.refcountBits;
    this.max = header.refcountBits >= 53 ? Number.MAX_SAFE_INTEGER : 2 ** header.refcountBits - 1;
    this.#tableOffset = header.refcountTableOffset;
    this.#table = table;
    this.cache = new TableCache({
      maxBytes: Math.max(cacheBytes, 4 * header.clusterBytes),
      load: (offset) => this.#loadBlock(offset),
    });
  }

  /**
   * Errors: EROFS for an entry of the refcount table that points nowhere, in an image that is to be written; who only reads
   * needs none, and is told.
   */
  static async open(
    header: Qcow2Header,
    request: Pick<OpenRequest, 'file' | 'path' | 'readOnly' | 'log'>,
    cacheBytes: number,
  ): Promise<Refcounts> {
    const { file, path, readOnly, log } = request;
    const bytes = new Uint8Array(header.refcountTableClusters * header.clusterBytes);
    await file.readClipped(guestOffset(header.refcountTableOffset), bytes);
    const view = viewOf(bytes);
    const table = new Float64Array(bytes.length / ENTRY_BYTES);
    let isTold = false;
    for (let i = 0; i < table.length; i++) {
      const offset = readU64BE(view, i * ENTRY_BYTES);
      if (offset === 0) continue;
      const at = header.refcountTableOffset + i * ENTRY_BYTES;
      if (!isAligned(offset, header.clusterBytes) || !(offset < file.lengthBytes)) {
        const error = badEntry(i, offset, { path, offset: at });
        if (!readOnly) throw error;
        if (!isTold) log.warning(path, error.describe());
        isTold = true;
        continue;
      }
      table[i] = offset;
    }
    return new Refcounts(file, header, table, path, cacheBytes);
  }

  get tableOffset(): number {
    return this.#tableOffset;
  }

  /** Entries that the refcount table has room for. */
  get tableEntries(): number {
    return this.#table.length;
  }

  /** Host offsets of all blocks. */
  *blockOffsets(): Generator<number> {
    for (const offset of this.#table) if (offset !== 0) yield offset;
  }

  blockOffset(blockIndex: number): number {
    return this.#table[blockIndex] ?? 0;
  }

  blockIndexOf(cluster: HostCluster): number {
    return Math.floor(cluster / this.blockEntries);
  }

  /** The block that counts a cluster, when it is in memory; null when it has to be loaded; 'none' when there is none. */
  residentBlock(cluster: HostCluster): CachedTable | null | 'none' {
    const offset = this.blockOffset(this.blockIndexOf(cluster));
    return offset === 0 ? 'none' : (this.cache.peek(offset) ?? null);
  }

  async loadBlockOf(cluster: HostCluster): Promise<void> {
    const offset = this.blockOffset(this.blockIndexOf(cluster));
    if (offset !== 0) await this.cache.get(offset);
  }

  /** From a block that `residentBlock` gave in this turn. */
  read(block: CachedTable, cluster: HostCluster): number {
    const index = cluster % this.blockEntries;
    const { view, bytes } = block;
    switch (this.#bits) {
      case 64:
        return this.#wide(view.getUint32(index * 8), view.getUint32(index * 8 + 4));
      case 32:
        return view.getUint32(index * 4);
      case 16:
        return view.getUint16(index * 2);
      case 8:
        return view.getUint8(index);
      default: {
        const perByte = 8 / this.#bits;
        const shift = (index % perByte) * this.#bits;
        return ((bytes[Math.floor(index / perByte)] ?? 0) >>> shift) & (2 ** this.#bits - 1);
      }
    }
  }

  /** How many clusters from this one on are free: `limit` at most, and no further than the block. */
  freeRun(block: CachedTable, cluster: HostCluster, limit: number): number {
    const index = cluster % this.blockEntries;
    const most = Math.min(limit, this.blockEntries - index);
    let count = 0;
    if (this.#bits === 16) {
      const { view } = block;
      while (count < most && view.getUint16((index + count) * 2) === 0) count++;
    } else while (count < most && this.read(block, hostCluster(cluster + count)) === 0) count++;
    return count;
  }

  /** Counts neighbouring free clusters of one block once; says so, for the journal. */
  take(block: CachedTable, first: HostCluster, count: number): Change {
    assert(this.freeRun(block, first, count) === count, 'only free clusters are taken');
    const index = first % this.blockEntries;
    for (let i = 0; i < count; i++) this.#write(block, index + i, 1);
    this.cache.changed(block);
    return { kind: 'counted', first, count };
  }

  /** Changes one refcount in memory; says what it did, for the journal. Errors: EFBIG kind invalid-image past the width. */
  set(block: CachedTable, cluster: HostCluster, now: number): Change {
    const old = this.read(block, cluster);
    if (now < 0 || now > this.max) {
      const message = `refcount of host cluster ${cluster} would be ${now}, outside 0 to ${this.max}`;
      throw new BlockError({ kind: 'invalid-image', message, path: this.#path });
    }
    this.#write(block, cluster % this.blockEntries, now);
    this.cache.changed(block);
    return { kind: 'refcount', cluster, old, now };
  }

  /** In a copy of the bytes of a block: a count that the cluster has had before. */
  setIn(bytes: Uint8Array, cluster: HostCluster, now: number): void {
    this.#write({ bytes, view: viewOf(bytes) }, cluster % this.blockEntries, now);
  }

  /** A new block for its range of clusters, at a cluster of that range or elsewhere; counted by the caller. */
  addBlock(blockIndex: number, offset: number): { block: CachedTable; changes: Change[] } {
    assert(this.#table[blockIndex] === 0, 'a range of clusters gets its refcount block once');
    const block = this.cache.put(offset, new Uint8Array(this.#clusterBytes));
    return {
      block,
      changes: [{ kind: 'table', at: offset, source: 0 }, this.setTableWord(blockIndex, offset)],
    };
  }

  setTableWord(blockIndex: number, offset: number): Change {
    const old = this.#table[blockIndex] ?? 0;
    this.#table[blockIndex] = offset;
    this.#dirtyWords.add(blockIndex);
    const at = this.#tableOffset + blockIndex * ENTRY_BYTES;
    return { kind: 'word', at, old: wordOf(old), now: wordOf(offset) };
  }

  /** The dirty words of the refcount table as they are now, by file offset. They stay dirty until `wordsWritten`. */
  dirtyWords(): { readonly index: number; readonly at: number; readonly value: number }[] {
    return [...this.#dirtyWords]
      .sort((a, b) => a - b)
      .map((index) => ({
        index,
        at: this.#tableOffset + index * ENTRY_BYTES,
        value: this.#table[index] ?? 0,
      }));
  }

  wordsWritten(indexes: readonly number[]): void {
    for (const index of indexes) this.#dirtyWords.delete(index);
  }

  /** The larger table is on disk at its new place, and the header says so. */
  moveTable(offset: number, entries: Float64Array): void {
    this.#tableOffset = offset;
    this.#table = entries;
    this.#dirtyWords.clear();
  }

  /** A copy with room for more entries. */
  enlargedTable(entries: number): Float64Array {
    const table = new Float64Array(entries);
    table.set(this.#table);
    return table;
  }

  async #loadBlock(offset: number): Promise<Uint8Array> {
    const bytes = new Uint8Array(this.#clusterBytes);
    await this.#file.readClipped(guestOffset(offset), bytes);
    return bytes;
  }

  // More than can be counted here is more than anybody decrements to zero.
  #wide(high: number, low: number): number {
    return high < 0x20_0000 ? high * TWO_32 + low : Number.MAX_SAFE_INTEGER;
  }

  #write({ view, bytes }: Pick<CachedTable, 'view' | 'bytes'>, index: number, value: number): void {
    switch (this.#bits) {
      case 64:
        view.setUint32(index * 8, Math.floor(value / TWO_32));
        view.setUint32(index * 8 + 4, value >>> 0);
        return;
      case 32:
        view.setUint32(index * 4, value);
        return;
      case 16:
        view.setUint16(index * 2, value);
        return;
      case 8:
        view.setUint8(index, value);
        return;
      default: {
        const perByte = 8 / this.#bits;
        const at = Math.floor(index / perByte);
        const shift = (index % perByte) * this.#bits;
        const mask = (2 ** this.#bits - 1) << shift;
        bytes[at] = ((bytes[at] ?? 0) & ~mask) | (value << shift);
      }
    }
  }
}

const badEntry = (
  index: number,
  offset: number,
  context: { readonly path: string; readonly offset: number },
): BlockError => {
  const value = Number.isNaN(offset) ? 'past 2^53' : hex(offset);
  const message = `refcount table entry ${index} is ${value}: no cluster of the file`;
  const hint = 'it can only be read; qemu-img check -r all makes its refcounts anew';
  return new BlockError({ kind: 'read-only', message, hint, op: 'open', ...context });
};

const wordOf = (value: number): { high: number; low: number } => ({
  high: Math.floor(value / TWO_32),
  low: value >>> 0,
});
