/**
 * Whether the references and refcounts of an image bear what a restart journal does when it is applied. What it has unmapped is given back
 * then, one reference each: it must be counted so often, beside all that names it afterwards. Another program that has unmapped the same
 * has given it back already, and perhaps taken it for something else. And what the journal has packed something into must hold nothing
 * that is not packed.
 *
 * Refcounts of an image that is marked dirty say nothing; its repair counts anew.
 */
import { viewOf } from '../../src/base/byte-order.ts';
import { alignDown } from '../../src/base/range.ts';
import {
  clusterOfHostOffset,
  guestOffset,
  type HostCluster,
  hostCluster,
  hostOffset,
} from '../../src/base/units.ts';
import { compressedPlace, entryOffset, isCompressed, type TableEntry } from './entry.ts';
import { ENTRY_BYTES, INCOMPATIBLE } from './layout.ts';
import { isSamePlace, type LeftChanges, lastOf } from './left-changes.ts';
import type { ImageState } from './state.ts';
import { type NamedTable, orNothingToFollow, type TableWalk } from './table-walk.ts';

/** How it shows that another program was there; null when it does not. Errors: EIO. */
export const findMiscounted = async (
  walk: TableWalk,
  state: ImageState,
  left: LeftChanges,
): Promise<string | null> => {
  const tally = new Tally(walk, state, left);
  if (state.dataFile !== null || tally.isIdle) return null;
  const plain = (await tally.addActive()) ?? (await tally.addSnapshots());
  if (plain !== null) return plain;
  return (state.header.incompatible & INCOMPATIBLE.dirty) === 0 ? tally.findTooLow() : null;
};

class Tally {
  readonly #walk: TableWalk;
  readonly #state: ImageState;
  readonly #left: LeftChanges;
  /** References that are given back, by host cluster. */
  readonly #gone: ReadonlyMap<HostCluster, number>;
  /** Host clusters that the journal has packed something into. */
  readonly #packed: ReadonlySet<HostCluster>;
  /** Tables that the journal changes or makes. */
  readonly #changed: ReadonlySet<number>;
  /** References that stay, to those that lose some. */
  readonly #named = new Map<HostCluster, number>();
  /** Which of those a table names. */
  readonly #namedBy = new Map<number, readonly HostCluster[]>();

  constructor(walk: TableWalk, state: ImageState, left: LeftChanges) {
    this.#walk = walk;
    this.#state = state;
    this.#left = left;
    this.#gone = referencesGone(state, left);
    this.#packed = packedInto(state, left);
    const { clusterBytes } = state;
    const words = [...left.words.keys()].map((at) => alignDown(at, clusterBytes));
    this.#changed = new Set([...words, ...left.tables.keys()]);
  }

  get isIdle(): boolean {
    return this.#gone.size === 0 && this.#packed.size === 0;
  }

  /** Returns what is wrong with an entry; null for nothing. */
  async addActive(): Promise<string | null> {
    const { map } = this.#state;
    for (let l1Index = 0; l1Index < map.l1Entries; l1Index++) {
      const changes = this.#left.words.get(map.l1Offset + l1Index * ENTRY_BYTES);
      const { high, low } = changes?.at(-1)?.now ?? map.l1Entry(l1Index);
      const offset = entryOffset(high, low);
      const found = offset === 0 ? null : await this.#add({ l1Index, offset });
      if (found !== null) return found;
    }
    return null;
  }

  /** The same. The search before has found that all of them can be read with a bounded effort. */
  async addSnapshots(): Promise<string | null> {
    for await (const l1 of this.#walk.snapshotL1Tables(await this.#walk.readingBudget())) {
      const found = await this.#addAll(l1).catch(orNothingToFollow);
      if (found !== null) return found;
    }
    return null;
  }

  async #addAll(l1: Parameters<TableWalk['tables']>[0]): Promise<string | null> {
    for (const table of this.#walk.tables(l1)) {
      const found = await this.#add(table);
      if (found !== null) return found;
    }
    return null;
  }

  async #add(table: NamedTable): Promise<string | null> {
    this.#count(hostCluster(table.offset / this.#state.clusterBytes));
    if (!this.#namedBy.has(table.offset)) {
      const bytes = await this.#finalBytes(table);
      const plain = bytes === null ? null : this.#plainIn(bytes);
      if (plain !== null) return `host cluster ${plain} holds what is not packed`;
      this.#namedBy.set(table.offset, bytes === null ? [] : this.#losersIn(table, bytes));
    }
    for (const cluster of this.#namedBy.get(table.offset) ?? []) this.#count(cluster);
    return null;
  }

  #count(cluster: HostCluster): void {
    if (this.#gone.has(cluster)) this.#named.set(cluster, (this.#named.get(cluster) ?? 0) + 1);
  }

  #losersIn(table: NamedTable, bytes: Uint8Array): readonly HostCluster[] {
    const named = this.#walk.clustersOf(table, bytes, () => undefined);
    return named.filter((cluster) => this.#gone.has(cluster));
  }

  /** A table as it is when the journal is applied; null for zeros, and for one that cannot be read: a snapshot's. */
  async #finalBytes(table: NamedTable): Promise<Uint8Array | null> {
    const { file, clusterBytes, map } = this.#state;
    const { offset } = table;
    if (!this.#changed.has(offset)) return this.#walk.read(table).catch(() => null);
    const bytes = new Uint8Array(clusterBytes);
    const source = this.#left.tables.get(offset) ?? offset;
    if (source !== 0) await file.readClipped(guestOffset(source), bytes);
    const view = viewOf(bytes);
    for (let at = 0; at < clusterBytes; at += map.entryBytes) {
      const now = this.#left.words.get(offset + at)?.at(-1)?.now;
      if (now === undefined) continue;
      view.setUint32(at, now.high);
      view.setUint32(at + 4, now.low);
    }
    return bytes;
  }

  #plainIn(bytes: Uint8Array): HostCluster | null {
    const { clusterBytes, map } = this.#state;
    const view = viewOf(bytes);
    for (let at = 0; this.#packed.size > 0 && at < bytes.length; at += map.entryBytes) {
      const [high, low] = [view.getUint32(at), view.getUint32(at + 4)];
      if (isCompressed(high)) continue;
      const cluster = hostCluster(entryOffset(high, low) / clusterBytes);
      if (cluster !== 0 && this.#packed.has(cluster)) return cluster;
    }
    return null;
  }

  async findTooLow(): Promise<string | null> {
    for (const [cluster, gone] of this.#gone) {
      const needed = gone + (this.#named.get(cluster) ?? 0);
      const counted = await this.#refcountOf(cluster);
      if (counted < needed)
        return `host cluster ${cluster} is counted ${counted} times, and has ${needed} references`;
    }
    return null;
  }

  async #refcountOf(cluster: HostCluster): Promise<number> {
    const changes = this.#left.refcounts.get(cluster);
    if (changes !== undefined) return lastOf(changes).now;
    const { refcounts } = this.#state;
    await refcounts.loadBlockOf(cluster);
    const block = refcounts.residentBlock(cluster);
    return block === null || block === 'none' ? 0 : refcounts.read(block, cluster);
  }
}

const referencesGone = (state: ImageState, { words }: LeftChanges): Map<HostCluster, number> => {
  const { refcounts } = state;
  const tableEnd = refcounts.tableOffset + refcounts.tableEntries * ENTRY_BYTES;
  const gone = new Map<HostCluster, number>();
  for (const [at, changes] of words) {
    if (at >= refcounts.tableOffset && at < tableEnd) continue;
    for (const { old, now } of changes) {
      if (isSamePlace(old, now)) continue;
      for (const c of clustersOf(old, state)) gone.set(c, (gone.get(c) ?? 0) + 1);
    }
  }
  return gone;
};

const packedInto = (state: ImageState, { words }: LeftChanges): Set<HostCluster> => {
  const packed = new Set<HostCluster>();
  for (const changes of words.values()) {
    const { now } = lastOf(changes);
    if (isCompressed(now.high)) for (const c of clustersOf(now, state)) packed.add(c);
  }
  return packed;
};

const clustersOf = (
  { high, low }: TableEntry,
  { clusterBytes, header }: Pick<ImageState, 'clusterBytes' | 'header'>,
): readonly HostCluster[] => {
  if (!isCompressed(high)) {
    const offset = entryOffset(high, low);
    return offset === 0 ? [] : [hostCluster(offset / clusterBytes)];
  }
  const { hostOffset: start, maxBytes } = compressedPlace(high, low, header.clusterBits);
  const last = clusterOfHostOffset(hostOffset(start + maxBytes - 1), clusterBytes);
  const clusters: HostCluster[] = [];
  for (let c = clusterOfHostOffset(start, clusterBytes); c <= last; c++) clusters.push(c);
  return clusters;
};
