/**
 * First half of a check: counts the references to every host cluster by walking the L1 and L2 tables of the active
 * image and of its snapshots.
 *
 * A table that is named many times is read once: its references are counted times the number of its names. So the
 * work is bounded by what the file stores, whatever the tables say, and nothing can loop.
 */
import { viewOf } from '../../src/base/byte-order.ts';
import { type CheckState, hex, type TablePlace } from './check-state.ts';
import { SparseCounters } from './sparse-counters.ts';

/** Who names an L2 table. */
const NAMED_BY = { active: 0, snapshot: 1 } as const;
type NamedBy = (typeof NAMED_BY)[keyof typeof NAMED_BY];

/** Offsets in entries have 9 zero bits. */
const SECTOR_BYTES = 512;
const ENTRY_BYTES = 8;
const L1_PIECE_BYTES = 64 << 10;

// The upper and the lower half of an entry (specification: "L1 table entry", "L2 table entry").
const HIGH = {
  copied: 0x8000_0000,
  compressed: 0x4000_0000,
  offset: 0x00ff_ffff,
  l1Reserved: 0x7f00_0000,
  l2Reserved: 0x3f00_0000,
} as const;
const LOW = { zero: 1, offset: 0xffff_fe00, l1Reserved: 0x1ff, l2Reserved: 0x1fe } as const;
const TWO_32 = 0x1_0000_0000;

const offsetOf = (high: number, low: number): number =>
  (high & HIGH.offset) * TWO_32 + ((low & LOW.offset) >>> 0);

export class ReferenceWalk {
  readonly #state: CheckState;
  /** By sector, not by cluster: a broken entry may name an unaligned table, which is checked all the same. */
  readonly #l2Tables: SparseCounters;

  constructor(state: CheckState) {
    this.#state = state;
    this.#l2Tables = new SparseCounters(2, 256, state.memory);
  }

  /** The active L1 table. Errors: EIO. */
  async activeL1(place: TablePlace): Promise<void> {
    await this.#l1(place, NAMED_BY.active, 'the L1 table');
  }

  /** A snapshot's L1 table. Errors: EIO. */
  async snapshotL1(place: TablePlace, name: string): Promise<void> {
    await this.#l1(place, NAMED_BY.snapshot, `the L1 table of snapshot '${name}'`);
  }

  /** Every L2 table that an L1 table named, in the order of the file. Errors: EIO. */
  async l2Tables(): Promise<void> {
    const table = new Uint8Array(this.#state.shape.clusterBytes);
    for (const index of this.#l2Tables.chunkIndexes()) {
      const [active, snapshot] = this.#l2Tables.chunk(index) ?? [];
      for (let i = 0; i < this.#l2Tables.chunkEntries; i++) {
        const names = { active: active?.[i] ?? 0, snapshot: snapshot?.[i] ?? 0 };
        if (names.active + names.snapshot === 0) continue;
        const offset = (index * this.#l2Tables.chunkEntries + i) * SECTOR_BYTES;
        if (await this.#state.readTable(offset, table)) this.#l2(table, offset, names);
      }
    }
  }

  /**
   * The L2 tables that the active L1 table names, each once, in the order of the file. `names`: how many entries of L1 tables
   * name it, snapshots' too.
   */
  *activeTables(): Generator<{ readonly offset: number; readonly names: number }> {
    for (const index of this.#l2Tables.chunkIndexes()) {
      const [active, snapshot] = this.#l2Tables.chunk(index) ?? [];
      for (let i = 0; i < this.#l2Tables.chunkEntries; i++) {
        const named = active?.[i] ?? 0;
        if (named === 0) continue;
        const offset = (index * this.#l2Tables.chunkEntries + i) * SECTOR_BYTES;
        yield { offset, names: named + (snapshot?.[i] ?? 0) };
      }
    }
  }

  async #l1(place: TablePlace, by: NamedBy, what: string): Promise<void> {
    const state = this.#state;
    state.reference(place.offset, place.lengthBytes, 1, () => what);
    const piece = new Uint8Array(Math.min(L1_PIECE_BYTES, place.lengthBytes));
    for (let done = 0; done < place.lengthBytes; done += piece.length) {
      const part = piece.subarray(0, Math.min(piece.length, place.lengthBytes - done));
      if (!(await state.readTable(place.offset + done, part))) continue;
      const view = viewOf(part);
      for (let at = 0; at < part.length; at += 8) {
        const [high, low] = [view.getUint32(at), view.getUint32(at + 4)];
        if (high === 0 && low === 0) continue;
        this.#l1Entry(high, low, by, () => `entry ${(done + at) / 8} of ${what}`);
      }
    }
  }

  #l1Entry(high: number, low: number, by: NamedBy, what: () => string): void {
    const state = this.#state;
    if ((high & HIGH.l1Reserved) !== 0 || (low & LOW.l1Reserved) !== 0) {
      state.corruption(`${what()}: reserved bits are set (${entryText(high, low)})`);
    }
    const offset = offsetOf(high, low);
    state.reference(offset, state.shape.clusterBytes, 1, () => `the L2 table of ${what()}`);
    if (offset % state.shape.clusterBytes !== 0) {
      state.corruption(`${what()}: L2 table offset ${hex(offset)} is not cluster aligned`);
    }
    if (by === NAMED_BY.active && offset !== 0) {
      state.countCopied(offset, (high & HIGH.copied) !== 0, 1);
    }
    if (offset < state.file.lengthBytes) this.#l2Tables.add(offset / SECTOR_BYTES, by, 1);
  }

  #l2(table: Uint8Array, offset: number, names: L2Names): void {
    const view = viewOf(table);
    const run: ContiguousRun = { next: 0 };
    // A table at offset 0 is the header; one with an unknown refcount is broken in another way.
    const areFlagsChecked = offset !== 0 && this.#state.hasRefcount(offset);
    const { l2EntryBytes } = this.#state.shape;
    const isExtended = l2EntryBytes > ENTRY_BYTES;
    for (let at = 0; at < table.length; at += l2EntryBytes) {
      const [high, low] = [view.getUint32(at), view.getUint32(at + 4)];
      const zeroes = isExtended ? view.getUint32(at + 8) : 0;
      const allocated = isExtended ? view.getUint32(at + 12) : 0;
      if (high === 0 && low === 0 && allocated === 0) continue;
      const entry: L2Entry = {
        high,
        low,
        zeroes,
        allocated,
        names,
        tableOffset: offset,
        index: at / l2EntryBytes,
        areFlagsChecked,
      };
      if ((high & HIGH.compressed) !== 0) this.#compressed(entry);
      else this.#standard(entry, run);
    }
  }

  #compressed(e: L2Entry): void {
    const { totals, shape } = this.#state;
    const times = e.names.active + e.names.snapshot;
    if (shape.hasDataFile) {
      this.#state.corruption(
        `${describe(e)}: a compressed cluster, but there is a data file`,
        times,
      );
      return;
    }
    if ((e.high & HIGH.copied) !== 0) {
      this.#state.corruption(`${describe(e)}: a compressed cluster has the COPIED flag`, times);
    }
    if (e.zeroes !== 0 || e.allocated !== 0) {
      this.#state.corruption(`${describe(e)}: a compressed cluster has subclusters`, times);
      return;
    }
    totals.allocatedClusters += e.names.active;
    totals.fragmentedClusters += e.names.active;
    totals.compressedClusters += e.names.active;
    // Bits 0 to x-1 are the offset, x to 61 the additional sectors; x = 62 - (cluster_bits - 8).
    const sectorBits = Math.log2(shape.clusterBytes) - 8;
    const highOffsetBits = 30 - sectorBits;
    const offset = (e.high & (2 ** highOffsetBits - 1)) * TWO_32 + e.low;
    const sectors = ((e.high & 0x3fff_ffff) >>> highOffsetBits) + 1;
    const lengthBytes = sectors * SECTOR_BYTES - (e.low % SECTOR_BYTES);
    this.#state.reference(offset, lengthBytes, times, () => describe(e));
  }

  #standard(e: L2Entry, run: ContiguousRun): void {
    const { totals, shape } = this.#state;
    const times = e.names.active + e.names.snapshot;
    if ((e.high & HIGH.l2Reserved) !== 0 || (e.low & LOW.l2Reserved) !== 0) {
      const bits = entryText(e.high, e.low);
      this.#state.corruption(`${describe(e)}: reserved bits are set (${bits})`, times);
    }
    const offset = offsetOf(e.high, e.low);
    const isCopied = (e.high & HIGH.copied) !== 0;
    // In a data file the offset may be 0: the flag says that there is a cluster.
    const isThere = shape.hasDataFile && isCopied && (e.low & LOW.zero) === 0;
    if (offset === 0 && !isThere) {
      if (e.allocated === 0) return;
      const what = 'subclusters are allocated, but no cluster is';
      this.#state.corruption(`${describe(e)}: ${what}`, times);
      return;
    }
    if ((e.zeroes & e.allocated) !== 0) {
      const what = 'subclusters are both allocated and zero';
      this.#state.corruption(`${describe(e)}: ${what}`, times);
    }
    if (offset % shape.clusterBytes !== 0) {
      const where = `host offset ${hex(offset)} is not cluster aligned`;
      this.#state.corruption(`${describe(e)}: ${where}`, times);
    }
    totals.allocatedClusters += e.names.active;
    if (run.next !== 0 && offset !== run.next) totals.fragmentedClusters += e.names.active;
    run.next = offset + shape.clusterBytes;
    if (shape.hasDataFile) {
      const flag = `${describe(e)}: a cluster of the data file without the COPIED flag`;
      if (!isCopied && e.names.active > 0) this.#state.corruption(flag, e.names.active);
      return;
    }
    this.#state.reference(offset, shape.clusterBytes, times, () => describe(e));
    if (e.names.active > 0 && e.areFlagsChecked) {
      this.#state.countCopied(offset, isCopied, e.names.active);
    }
  }
}

interface L2Names {
  readonly active: number;
  readonly snapshot: number;
}

interface L2Entry {
  readonly high: number;
  readonly low: number;
  /** Bitmaps of subclusters; 0 without them. */
  readonly zeroes: number;
  readonly allocated: number;
  readonly names: L2Names;
  readonly tableOffset: number;
  readonly index: number;
  readonly areFlagsChecked: boolean;
}

/** Where the next cluster of a table lies when it is not fragmented; 0 before the first. */
interface ContiguousRun {
  next: number;
}

const describe = (e: L2Entry): string =>
  `entry ${e.index} of the L2 table at ${hex(e.tableOffset)}`;

const entryText = (high: number, low: number): string =>
  `0x${high.toString(16).padStart(8, '0')}${low.toString(16).padStart(8, '0')}`;
