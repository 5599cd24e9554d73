/** What a checkpoint covers: copies of all that was dirty at one moment, with changes in it or without them. */
import { viewOf } from '../../src/base/byte-order.ts';
import { alignDown } from '../../src/base/range.ts';
import { type HostCluster, hostCluster } from '../../src/base/units.ts';
import type { OwedHeader } from '../../src/block/header-changes.ts';
import type { TableSnapshot } from '../../src/block/table-cache.ts';
import type { ClusterRun } from './allocator.ts';
import type { L1Word } from './cluster-map.ts';
import type { L2Entry, TableEntry } from './entry.ts';
import { type Change, decodeChanges, encodeChanges, type SingleChange } from './journal-records.ts';
import type { ImageState } from './state.ts';

/** Of the refcount table. */
export interface TableWord {
  readonly index: number;
  readonly at: number;
  readonly value: number;
}

export interface Covered {
  readonly owed: OwedHeader | null;
  readonly blocks: readonly TableSnapshot[];
  readonly words: readonly TableWord[];
  /** New ones, by offset: what they held when they were made. */
  readonly tables: readonly (readonly [number, Uint8Array | null])[];
  readonly slices: readonly TableSnapshot[];
  readonly l1: readonly L1Word[];
  readonly unmapped: readonly ClusterRun[];
}

/** No table had so many when it was copied: what a copy was written of stays dirty. */
const NO_CHANGES = -1;

/**
 * The same as if changes had not been made, which are the last ones of what they change, oldest first. What they are in stays dirty.
 * New tables are covered all the same, as nothing names them then, and bytes of the header that are owed.
 */
export const leaveOut = (
  state: ImageState,
  covered: Covered,
  changes: readonly Change[],
): Covered => {
  const copies = new Copies(state, covered);
  const singles = decodeChanges(encodeChanges(changes));
  for (const change of singles.reverse()) copies.undo(change);
  return copies.covered;
};

class Copies {
  readonly #state: ImageState;
  readonly #covered: Covered;
  readonly #blocks: Map<number, TableSnapshot>;
  readonly #words: Map<number, TableWord>;
  readonly #slices: Map<number, TableSnapshot>;
  readonly #l1: Map<number, L1Word>;

  constructor(state: ImageState, covered: Covered) {
    this.#state = state;
    this.#covered = covered;
    this.#blocks = byKey(covered.blocks);
    this.#words = byOffset(covered.words);
    this.#slices = byKey(covered.slices);
    this.#l1 = byOffset(covered.l1);
  }

  get covered(): Covered {
    return {
      ...this.#covered,
      blocks: [...this.#blocks.values()],
      words: [...this.#words.values()],
      slices: [...this.#slices.values()],
      l1: [...this.#l1.values()],
    };
  }

  /** What has been dropped meanwhile, or has moved, is in no copy. */
  undo(change: SingleChange): void {
    if (change.kind === 'refcount') this.#count(hostCluster(change.cluster), change.old);
    else if (change.kind === 'word') this.#setWord(change.at, change.old);
    else if (change.kind === 'extended') this.#setEntry(change.at, change.old);
  }

  #count(cluster: HostCluster, count: number): void {
    const { refcounts } = this.#state;
    const block = changing(this.#blocks, refcounts.blockOffset(refcounts.blockIndexOf(cluster)));
    if (block !== null) refcounts.setIn(block, cluster, count);
  }

  #setWord(at: number, word: TableEntry): void {
    const inL1 = this.#l1.get(at);
    if (inL1 !== undefined) this.#l1.set(at, { ...inL1, entry: word });
    // A refcount block is named once: the disk has no word there.
    else if (this.#words.has(at)) this.#words.delete(at);
    else this.#setEntry(at, word);
  }

  #setEntry(at: number, entry: TableEntry | L2Entry): void {
    const start = alignDown(at, this.#state.map.sliceBytes);
    const slice = changing(this.#slices, start);
    if (slice === null) return;
    const view = viewOf(slice);
    view.setUint32(at - start, entry.high);
    view.setUint32(at - start + 4, entry.low);
    if (!('zeroes' in entry)) return;
    view.setUint32(at - start + 8, entry.zeroes);
    view.setUint32(at - start + 12, entry.allocated);
  }
}

const changing = (copies: Map<number, TableSnapshot>, key: number): Uint8Array | null => {
  const copy = copies.get(key);
  if (copy === undefined) return null;
  copies.set(key, { ...copy, changes: NO_CHANGES });
  return copy.bytes;
};

const byKey = (copies: readonly TableSnapshot[]): Map<number, TableSnapshot> =>
  new Map(copies.map((copy) => [copy.table.key, copy]));

const byOffset = <T extends { readonly at: number }>(words: readonly T[]): Map<number, T> =>
  new Map(words.map((word) => [word.at, word]));
