/** How long to wait before the next try: doubled each time up to a bound, half of it by chance, so that clients do not come in step. */
import { type Random, seededRandom } from './random.ts';

export interface BackOffLimits {
  readonly firstMs: number;
  readonly lastMs: number;
}

export class BackOff {
  readonly #limits: BackOffLimits;
  readonly #random: Random;
  #nextMs: number;

  constructor(limits: BackOffLimits, random: Random = seededRandom(process.pid ^ Date.now())) {
    this.#limits = limits;
    this.#random = random;
    this.#nextMs = limits.firstMs;
  }

  /** Milliseconds to wait now: between half of this turn's length and all of it. */
  next(): number {
    const whole = this.#nextMs;
    this.#nextMs = Math.min(2 * whole, this.#limits.lastMs);
    return whole * (0.5 + this.#random.next() / 2);
  }

  /** Something has worked: the next failure begins anew. */
  reset(): void {
    this.#nextMs = this.#limits.firstMs;
  }
}
