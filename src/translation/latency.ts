/**
 * How long requests took, as histograms in shared memory: each writer adds to its own, anyone reads the sums, and
 * nobody waits. A request costs its writer two looks at the clock and two additions, and only where it is asked for.
 *
 *     writer   one block for each kind of request: BUCKETS counts, the sum in microseconds; each a u64 as two words
 */

/** Bucket i holds what took at most 2^(i + FIRST_BITS) microseconds: 8 µs to 16.8 s; the last holds the rest. */
const FIRST_BITS = 3;
const BUCKETS = 23;
const WORDS_PER_KIND = (BUCKETS + 1) * 2;

/** Upper bounds in seconds, without the last, which has none. */
export const LATENCY_BOUNDS: readonly number[] = Array.from(
  { length: BUCKETS - 1 },
  (_, i) => 2 ** (i + FIRST_BITS) / 1e6,
);

export interface LatencyHistogram {
  /** Of each bucket alone; one more than there are bounds. */
  readonly counts: readonly number[];
  readonly sumSeconds: number;
}

export const createSharedLatencies = (writers: number, kinds: number): SharedArrayBuffer =>
  new SharedArrayBuffer(writers * kinds * WORDS_PER_KIND * 4);

export class LatencyRecorder {
  readonly #words: Int32Array;
  readonly #at: number;

  /** `writer` is the only one that records there. */
  constructor(shared: SharedArrayBuffer, options: { writer: number; kinds: number }) {
    this.#words = new Int32Array(shared);
    this.#at = options.writer * options.kinds * WORDS_PER_KIND;
  }

  record(kind: number, milliseconds: number): void {
    const microseconds = Math.min(0x7fff_ffff, Math.max(1, Math.ceil(milliseconds * 1000)));
    const bits = microseconds === 1 ? 0 : 32 - Math.clz32(microseconds - 1);
    const bucket = Math.min(BUCKETS - 1, Math.max(0, bits - FIRST_BITS));
    const at = this.#at + kind * WORDS_PER_KIND;
    this.#add(at + bucket * 2, 1);
    this.#add(at + BUCKETS * 2, microseconds);
  }

  #add(at: number, amount: number): void {
    const before = Atomics.load(this.#words, at) >>> 0;
    const after = (before + amount) >>> 0;
    if (after < before) Atomics.add(this.#words, at + 1, 1);
    Atomics.store(this.#words, at, after);
  }
}

/** One kind, over all writers. */
export const readLatencies = (
  shared: SharedArrayBuffer,
  { kind, kinds }: { readonly kind: number; readonly kinds: number },
): LatencyHistogram => {
  const words = new Int32Array(shared);
  const sums = new Array<number>(BUCKETS + 1).fill(0);
  for (let at = kind * WORDS_PER_KIND; at < words.length; at += kinds * WORDS_PER_KIND) {
    for (let i = 0; i <= BUCKETS; i++) {
      const high = Atomics.load(words, at + i * 2 + 1) >>> 0;
      sums[i] = (sums[i] ?? 0) + high * 2 ** 32 + (Atomics.load(words, at + i * 2) >>> 0);
    }
  }
  return { counts: sums.slice(0, BUCKETS), sumSeconds: (sums[BUCKETS] ?? 0) / 1e6 };
};
