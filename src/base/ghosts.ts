/**
 * The keys of what a cache did not take in, so that it takes in what is asked for a second time: what is asked for once, by a reader that
 * jumps about in far more than the cache holds, then drives nothing out that is used.
 *
 * Bounded, eight bytes a key: each key has a set of a few places, in which a new one takes over that of the oldest.
 */

/** Places of a set. */
const WAYS = 4;

/** 32 bits of a key, of which the upper ones differ also where keys are multiples of some power of two. */
const mix = (key: number): number => {
  const folded = Math.imul(key | 0, 0x9e37_79b1) ^ Math.imul(key / 2 ** 32, 0x85eb_ca6b);
  return Math.imul(folded ^ (folded >>> 15), 0x2c1b_3c6d);
};

export class Ghosts {
  /** Key + 1, the newest of each set first; 0 for none. */
  readonly #keys: Float64Array;
  readonly #shift: number;

  /** `count`: so many keys are remembered, or up to twice as many; 8 or more. */
  constructor(count: number) {
    const bits = Math.ceil(Math.log2(Math.max(8, count) / WAYS));
    this.#keys = new Float64Array(WAYS * 2 ** bits);
    this.#shift = 32 - bits;
  }

  /** True: the key was there, and is no more. False: it is there now. `key`: a whole number from 0 to 2^53 - 2. */
  take(key: number): boolean {
    const first = (mix(key) >>> this.#shift) * WAYS;
    const keys = this.#keys;
    for (let place = first; place < first + WAYS; place++) {
      if (keys[place] !== key + 1) continue;
      keys[place] = 0;
      return true;
    }
    for (let place = first + WAYS - 1; place > first; place--) keys[place] = keys[place - 1] ?? 0;
    keys[first] = key + 1;
    return false;
  }
}
