/**
 * Counters of the data plane: each worker adds to its own, anyone reads the sums. A counter is two words (low, high)
 * with one writer, so a reader may see one a moment old, never a wrong one for long.
 */

export const COUNTER = { requests: 0, hits: 1, faults: 2, readBytes: 3, writtenBytes: 4 } as const;

/** Words of one worker: a multiple of a cache line. */
const WORDS_PER_WORKER = 16;

export const createSharedCounters = (workers: number): SharedArrayBuffer =>
  new SharedArrayBuffer(workers * WORDS_PER_WORKER * 4);

export class WorkerCounters {
  readonly #words: Int32Array;
  readonly #at: number;

  constructor(shared: SharedArrayBuffer, worker: number) {
    this.#words = new Int32Array(shared);
    this.#at = worker * WORDS_PER_WORKER;
  }

  /** `amount` below 2^31. */
  add(counter: number, amount: number): void {
    const at = this.#at + counter * 2;
    const before = Atomics.load(this.#words, at) >>> 0;
    const after = (before + amount) >>> 0;
    if (after < before) Atomics.add(this.#words, at + 1, 1);
    Atomics.store(this.#words, at, after);
  }
}

/** The sum over all workers. */
export const sumCounter = (shared: SharedArrayBuffer, counter: number): number => {
  const words = new Int32Array(shared);
  let sum = 0;
  for (let at = counter * 2; at < words.length; at += WORDS_PER_WORKER) {
    sum += (Atomics.load(words, at + 1) >>> 0) * 2 ** 32 + (Atomics.load(words, at) >>> 0);
  }
  return sum;
};
