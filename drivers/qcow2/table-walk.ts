/**
 * Reading the tables of an L1 table that is not the one in memory, or all of one: what a snapshot operation works through.
 *
 * Holes of the host file are skipped, and `survey` bounds the reading by what the file takes on its host, so that tables
 * which are named over and over, or lie in a sparse file, end in an error and not in a hang. Others get their turn of
 * the event loop in between.
 */
import { setImmediate as nextTurn } from 'node:timers/promises';
import { BlockError, invalidImage } from '../../src/base/block-error.ts';
import { viewOf } from '../../src/base/byte-order.ts';
import { type ByteRange, isAligned } from '../../src/base/range.ts';
import {
  clusterOfHostOffset,
  guestOffset,
  type HostCluster,
  hostCluster,
  hostOffset,
} from '../../src/base/units.ts';
import { compressedPlace, entryHex, entryOffset, hex, isCompressed } from './entry.ts';
import { ENTRY_BYTES, MAX_L1_BYTES } from './layout.ts';
import { readSnapshotTable, type Snapshot } from './snapshot-table.ts';
import { Budget } from './sparse-counters.ts';
import type { ImageState } from './state.ts';

const FIXED_WORK_BYTES = 1 << 30;
/** What it costs to see that a table is a hole, in bytes of reading. */
const HOLE_WORK_BYTES = 4096;
/** The longest that a walk keeps the event loop to itself. */
const TURN_MS = 5;

/** An L1 table in memory. */
export interface L1Table {
  /** How errors call it: "the L1 table", "the L1 table of snapshot 'x'". */
  readonly what: string;
  /** Of the host file, for errors. */
  readonly offset: number;
  readonly view: DataView;
}

/** An L2 table that an L1 table names. */
export interface NamedTable {
  readonly l1Index: number;
  readonly offset: number;
}

export interface SurveyOptions {
  /** Offsets of tables that were read before. */
  readonly known?: ReadonlySet<number>;
  /** Shared with other tables. */
  readonly work?: Budget;
}

export class TableWalk {
  readonly #state: ImageState;
  #turnBegan = performance.now();
  /** A hole of the host file; nothing is written to L2 tables in it while an operation walks. */
  #hole: ByteRange = { start: 0, end: 0 };

  constructor(state: ImageState) {
    this.#state = state;
  }

  /**
   * Before anything is changed: whether its L2 tables lie where tables can, and can be read with an effort that the image's
   * size explains; without those at `known` offsets. Errors: EIO kind invalid-image.
   */
  async survey(l1: L1Table, { known, work }: SurveyOptions = {}): Promise<void> {
    const { clusterBytes } = this.#state;
    const left = work ?? (await this.readingBudget());
    for (const table of this.tables(l1)) {
      if (known?.has(table.offset) === true) continue;
      left.spend((await this.#isHole(table)) ? HOLE_WORK_BYTES : clusterBytes);
    }
  }

  /** As much reading as the image's size explains. */
  async readingBudget(): Promise<Budget> {
    const allocatedBytes = await this.#state.file.driver.allocatedBytes();
    return new Budget('reading', FIXED_WORK_BYTES + 16 * allocatedBytes);
  }

  /** A copy of the active L1 table as it is in memory. */
  activeL1(): L1Table {
    const { map } = this.#state;
    const view = viewOf(map.enlargedL1(map.l1Entries));
    return { what: 'the L1 table', offset: map.l1Offset, view };
  }

  /** A snapshot's L1 table. Errors: EIO kind invalid-image for a place that no table can have. */
  async snapshotL1(snapshot: Snapshot): Promise<L1Table> {
    const { file } = this.#state;
    const place = checkedL1Place(snapshot, this.#state);
    const bytes = new Uint8Array(place.entries * ENTRY_BYTES);
    if (bytes.length > 0) await file.readClipped(guestOffset(place.offset), bytes);
    const what = `the L1 table of snapshot '${snapshot.description.name}'`;
    return { what, offset: place.offset, view: viewOf(bytes) };
  }

  /**
   * The L1 table of each snapshot that can be followed; one in memory at a time. A snapshot, or a table of them, that was damaged before is
   * left out. Errors: kind invalid-image when `work` is spent; EIO.
   */
  async *snapshotL1Tables(work: Budget): AsyncGenerator<L1Table> {
    const { file, lengthBytes, request, snapshotTable } = this.#state;
    const place = { ...snapshotTable, virtualSizeBytes: lengthBytes };
    const table = await readSnapshotTable(file, place, request.path).catch(orNothingToFollow);
    for (const snapshot of table?.snapshots ?? []) {
      const l1 = await this.snapshotL1(snapshot).catch(orNothingToFollow);
      if (l1 === null) continue;
      work.spend(l1.view.byteLength);
      yield l1;
    }
  }

  /**
   * The L2 tables that an L1 table names, in its order. Errors: EIO kind invalid-image for an entry that names no place
   * where a table can be, and for a table that is named twice; before the first is given.
   */
  *tables(l1: L1Table): Generator<NamedTable> {
    const offsets = new Float64Array(l1.view.byteLength / ENTRY_BYTES);
    for (let i = 0; i < offsets.length; i++) offsets[i] = this.#tableOffset(l1, i);
    const sorted = offsets.slice().sort();
    for (let i = 1; i < sorted.length; i++) {
      const offset = sorted[i] ?? 0;
      if (offset === 0 || offset !== sorted[i - 1]) continue;
      throw invalidImage(
        `${l1.what} names the L2 table at ${hex(offset)} twice`,
        this.#context(l1),
      );
    }
    for (const [l1Index, offset] of offsets.entries()) if (offset !== 0) yield { l1Index, offset };
  }

  /** An L2 table's bytes; null where the host stores nothing, so that all of it is zero. Errors: EIO. */
  async read(table: NamedTable): Promise<Uint8Array | null> {
    if (await this.#isHole(table)) return null;
    const bytes = new Uint8Array(this.#state.clusterBytes);
    await this.#state.file.readClipped(guestOffset(table.offset), bytes);
    return bytes;
  }

  async #isHole({ offset }: NamedTable): Promise<boolean> {
    const { file, clusterBytes } = this.#state;
    if (performance.now() - this.#turnBegan > TURN_MS) {
      // What is cached is read at once: nothing else would run.
      await nextTurn();
      this.#turnBegan = performance.now();
    }
    if (offset >= this.#hole.start && offset + clusterBytes <= this.#hole.end) return true;
    // As far as the hole goes: the next table may lie in it too.
    const ahead = Math.max(clusterBytes, file.lengthBytes - offset);
    const found = await file.driver.stores?.(hostOffset(offset), ahead);
    if (found === undefined || found.stored || found.lengthBytes < clusterBytes) return false;
    this.#hole = { start: offset, end: offset + found.lengthBytes };
    return true;
  }

  /**
   * The host clusters that a table's entries name, as often as they do. Errors: EIO kind invalid-image for an entry that
   * breaks the format; with `skip`, those are left out and told.
   */
  clustersOf(
    table: NamedTable,
    bytes: Uint8Array,
    skip?: (problem: string) => void,
  ): readonly HostCluster[] {
    const view = viewOf(bytes);
    const clusters: HostCluster[] = [];
    for (let at = 0; at < bytes.length; at += this.#state.map.entryBytes) {
      const [high, low] = [view.getUint32(at), view.getUint32(at + 4)];
      if (high === 0 && low === 0) continue;
      const problem = this.#addClusters(high, low, clusters);
      if (problem === null) continue;
      const text = `L2 entry ${entryHex(high, low)} ${problem}`;
      if (skip === undefined)
        throw invalidImage(text, {
          path: this.#state.request.path,
          offset: table.offset + at,
        });
      skip(text);
    }
    return clusters;
  }

  #addClusters(high: number, low: number, clusters: HostCluster[]): string | null {
    const { clusterBytes, header, file, metadata } = this.#state;
    if (isCompressed(high)) {
      const { hostOffset: start, maxBytes } = compressedPlace(high, low, header.clusterBits);
      if (start >= file.lengthBytes) return 'lies past the end of the file';
      const last = clusterOfHostOffset(hostOffset(start + maxBytes - 1), clusterBytes);
      for (let c = clusterOfHostOffset(start, clusterBytes); c <= last; c++) clusters.push(c);
      return null;
    }
    const offset = entryOffset(high, low);
    if (offset === 0) return null;
    if (!isAligned(offset, clusterBytes)) return 'is not a multiple of the cluster size';
    const cluster = hostCluster(offset / clusterBytes);
    if (metadata.has(cluster)) return 'points to metadata';
    clusters.push(cluster);
    return null;
  }

  #tableOffset(l1: L1Table, index: number): number {
    const { clusterBytes, file, metadata } = this.#state;
    const [high, low] = [
      l1.view.getUint32(index * ENTRY_BYTES),
      l1.view.getUint32(index * ENTRY_BYTES + 4),
    ];
    const offset = entryOffset(high, low);
    if (offset === 0) return 0;
    const bad = (why: string): Error =>
      invalidImage(
        `entry ${index} of ${l1.what} is ${entryHex(high, low)}, ${why}`,
        this.#context(l1, index),
      );
    if (!isAligned(offset, clusterBytes)) throw bad('not a multiple of the cluster size');
    if (offset >= file.lengthBytes) throw bad('past the end of the file');
    if (metadata.kindOf(hostCluster(offset / clusterBytes)) === 'other')
      throw bad('where other metadata lies');
    return offset;
  }

  #context(l1: L1Table, index = 0): { path: string; offset: number } {
    return { path: this.#state.request.path, offset: l1.offset + index * ENTRY_BYTES };
  }
}

/** For what breaks the format; other errors are thrown. */
export const orNothingToFollow = (error: unknown): null => {
  if (error instanceof BlockError && error.kind === 'invalid-image') return null;
  throw error;
};

/** Where a snapshot's L1 table is. Errors: EIO kind invalid-image, naming the field. */
export const checkedL1Place = (
  { description, l1Offset, l1Entries }: Snapshot,
  image: Pick<ImageState, 'clusterBytes' | 'file' | 'request'>,
): { readonly offset: number; readonly entries: number } => {
  const { path } = image.request;
  const bad = (what: string): Error =>
    invalidImage(`snapshot '${description.name}': ${what}`, { path });
  const lengthBytes = l1Entries * ENTRY_BYTES;
  if (lengthBytes > MAX_L1_BYTES)
    throw bad(`its L1 table has ${l1Entries} entries, more than 32 MiB of them`);
  if (l1Entries === 0) return { offset: l1Offset, entries: 0 };
  const where = `its L1 table is at ${hex(l1Offset)}`;
  if (!isAligned(l1Offset, image.clusterBytes))
    throw bad(`${where}, not a multiple of the cluster size`);
  if (l1Offset < image.clusterBytes) throw bad(`${where}, inside the header`);
  if (l1Offset + lengthBytes > image.file.lengthBytes)
    throw bad(`${where}, and its ${lengthBytes} bytes reach past the end of the file`);
  return { offset: l1Offset, entries: l1Entries };
};
