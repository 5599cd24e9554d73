/**
 * When short system calls are made at once rather than on another thread, whose two wake-ups cost ten times what such a call
 * does. The event loop must not wait for a disk: after calls that were slow the long way is taken for a while.
 *
 * A call may also be slow because other threads had the core meanwhile. On a busy machine that happens to one call in some hundred, and
 * a rest after each of those would send a tenth of all requests the long way. So a call counts as slow when its thread has waited for something,
 * and a little waiting is passed over: for a lock, say, whose holder was not let run.
 */

const SLOW_MS = 2;
/** A call as slow as this counts, whatever it did. */
const VERY_SLOW_MS = 50;
/** So much waiting in slow calls is passed over, in ms, and so much more in each ms. */
const PASSED_OVER_MS = 25;
const PASSED_OVER_EACH_MS = 0.025;
/** Between two calls a thread has not waited in less. */
const NO_WAIT_MS = 0.02;

export interface QuickPaceOptions {
  /** After the first slow call, in ms; twice as long after each that follows. */
  readonly firstRestMs: number;
  readonly lastRestMs: number;
  /** How often this thread has waited, for whatever. */
  readonly timesWaited: () => number;
}

export class QuickPace {
  readonly #options: QuickPaceOptions;
  #restMs: number;
  #restsUntilMs = 0;
  /** When the last call ended, and how often the thread had waited by then, or when the next one began. */
  #endedMs = Number.NEGATIVE_INFINITY;
  #timesWaited = 0;
  /** Of PASSED_OVER_MS, since the last slow call that waited. */
  #leftMs = PASSED_OVER_MS;
  #leftSinceMs = 0;

  constructor(options: QuickPaceOptions) {
    this.#options = options;
    this.#restMs = options.firstRestMs;
  }

  /** False: take the long way. */
  mayTry(): boolean {
    return this.#restsUntilMs === 0 || performance.now() >= this.#restsUntilMs;
  }

  /** Makes a call, and learns how long it takes. Errors: those of the call. */
  timed<T>(call: () => T): T {
    const begunMs = performance.now();
    if (begunMs - this.#endedMs > NO_WAIT_MS) this.#timesWaited = this.#options.timesWaited();
    try {
      return call();
    } finally {
      this.#ended(begunMs, performance.now());
    }
  }

  #ended(begunMs: number, endedMs: number): void {
    this.#endedMs = endedMs;
    const tookMs = endedMs - begunMs;
    if (tookMs > SLOW_MS && this.#counts(tookMs)) {
      this.#restsUntilMs = endedMs + this.#restMs;
      this.#restMs = Math.min(2 * this.#restMs, this.#options.lastRestMs);
    } else if (this.#restsUntilMs !== 0) {
      this.#restsUntilMs = 0;
      this.#restMs = this.#options.firstRestMs;
    }
  }

  #counts(tookMs: number): boolean {
    const before = this.#timesWaited;
    this.#timesWaited = this.#options.timesWaited();
    if (this.#timesWaited === before) return tookMs > VERY_SLOW_MS;
    const more = (this.#endedMs - this.#leftSinceMs) * PASSED_OVER_EACH_MS;
    this.#leftMs = Math.min(PASSED_OVER_MS, this.#leftMs + more);
    this.#leftSinceMs = this.#endedMs;
    if (tookMs > this.#leftMs) return true;
    this.#leftMs -= tookMs;
    return false;
  }
}
