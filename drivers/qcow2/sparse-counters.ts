/**
 * Counters over a huge index space of which few indexes are used: chunks of `chunkEntries` counters, made when first
 * touched and charged to a budget, so that a small hostile image cannot have them fill the memory.
 */
import { BlockError } from '../../src/base/block-error.ts';

/** Bytes that a piece of work may still use; shared by those who spend from it. */
export class Budget {
  readonly #what: string;
  #left: number;

  /** `what` ends the sentence "the image's tables need more … than its size explains". */
  constructor(what: string, bytes: number) {
    this.#what = what;
    this.#left = bytes;
  }

  get isSpent(): boolean {
    return this.#left < 0;
  }

  /** Errors: kind invalid-image when it is spent. */
  spend(bytes: number): void {
    this.#left -= bytes;
    if (this.#left >= 0) return;
    throw new BlockError({
      kind: 'invalid-image',
      message: `the image's tables need more ${this.#what} than its size explains`,
      op: 'check',
    });
  }
}

/** A Map's entry and a typed array's object, roughly. */
const CHUNK_OVERHEAD_BYTES = 256;
const COUNTER_MAX = 0xffff_ffff;

/** One chunk: a counter array per lane. */
export type Chunk = readonly Uint32Array[];

export class SparseCounters<Index extends number = number> {
  readonly chunkEntries: number;
  readonly #lanes: number;
  readonly #budget: Budget;
  readonly #chunks = new Map<number, Chunk>();
  // Neighbours come one after the other: most look-ups end here.
  #lastIndex = -1;
  #last: Chunk = [];

  /** `lanes` counters stand at each index. `chunkEntries`: indexes per chunk. */
  constructor(lanes: number, chunkEntries: number, budget: Budget) {
    this.#lanes = lanes;
    this.chunkEntries = chunkEntries;
    this.#budget = budget;
  }

  /**
   * Adds to a counter, which stops at `limit` (at most 2^32 - 1); how much did not fit. Errors: the budget's.
   */
  add(index: Index, lane: number, amount: number, limit: number = COUNTER_MAX): number {
    const at = index % this.chunkEntries;
    const counters = this.#chunkFor((index - at) / this.chunkEntries)[lane];
    if (counters === undefined) return 0;
    const wanted = (counters[at] ?? 0) + amount;
    counters[at] = Math.min(wanted, limit);
    return Math.max(0, wanted - limit);
  }

  get(index: Index, lane: number): number {
    const at = index % this.chunkEntries;
    return this.#chunks.get((index - at) / this.chunkEntries)?.[lane]?.[at] ?? 0;
  }

  /** The chunk of indexes from `chunkIndex * chunkEntries` on, when any of them was touched. */
  chunk(chunkIndex: number): Chunk | undefined {
    return this.#chunks.get(chunkIndex);
  }

  /** Touched chunks' indexes, ascending. */
  chunkIndexes(): number[] {
    return [...this.#chunks.keys()].sort((a, b) => a - b);
  }

  #chunkFor(chunkIndex: number): Chunk {
    if (chunkIndex === this.#lastIndex) return this.#last;
    let chunk = this.#chunks.get(chunkIndex);
    if (chunk === undefined) {
      this.#budget.spend(this.#lanes * this.chunkEntries * 4 + CHUNK_OVERHEAD_BYTES);
      chunk = Array.from({ length: this.#lanes }, () => new Uint32Array(this.chunkEntries));
      this.#chunks.set(chunkIndex, chunk);
    }
    this.#lastIndex = chunkIndex;
    this.#last = chunk;
    return chunk;
  }
}
