/**
 * Which slices a full table takes in. Filling one costs a third of a fault, and drives another out: for nothing, when a guest jumps about in
 * far more than the table holds, and what was filled goes before any worker has used it.
 *
 * So it is watched how many of the slices that go were of use. While some are, a slice comes in with its first fault. While hardly any
 * is, it comes in with its second one, when that follows soon enough for it to have been there still: a guest that reads on, or stays
 * where it is, has one fault more for each slice.
 */
import { Ghosts } from '../base/ghosts.ts';

/** Weight of the slice that goes now, of all that have gone. */
const WEIGHT = 1 / 32;
/** Of slices that go: with fewer of use, filling costs more than its hits save. */
const WORTH_IT = 1 / 8;

export class Admission {
  readonly #once: Ghosts;
  #useful = 1;

  /** `slices`: how many the table holds. */
  constructor(slices: number) {
    this.#once = new Ghosts(2 * slices);
  }

  /** Whether a slice that has faulted comes in, where another one has to go for it. */
  admits(key: number): boolean {
    return this.#useful >= WORTH_IT || this.#once.take(key);
  }

  /** A slice has gone to make room. `wasUsed`: by a worker, since it came. */
  evicted(wasUsed: boolean): void {
    this.#useful += ((wasUsed ? 1 : 0) - this.#useful) * WEIGHT;
  }
}
