/**
 * When short system calls are made at once rather than on another thread, whose two wake-ups cost ten times what such a call
 * does. The event loop must not wait for a disk: after calls that were slow the long way is taken for a while.
 *
 * A call may also be slow because other threads had the core meanwhile. On a busy machine that happens to one call in some hundred, and
 * a rest after each of those would send a tenth of all requests the long way. A disk that is slow is slow again at once: so one slow
 * call is passed over when the ones before it were quick.
 */

const SLOW_MS = 2;
/** A call as slow as this waited for no core. */
const VERY_SLOW_MS = 50;
/** So many quick calls in a row, and a slow one is passed over. */
const QUICK_CALLS = 16;

export interface QuickPaceOptions {
  /** After the first slow call, in ms; twice as long after each that follows. */
  readonly firstRestMs: number;
  readonly lastRestMs: number;
}

export class QuickPace {
  readonly #options: QuickPaceOptions;
  #restMs: number;
  #restsUntilMs = 0;
  /** Since the last slow one. */
  #quickCalls = QUICK_CALLS;

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
    const begun = performance.now();
    try {
      return call();
    } finally {
      this.#ended(begun, performance.now());
    }
  }

  #ended(begunMs: number, endedMs: number): void {
    const tookMs = endedMs - begunMs;
    if (tookMs <= SLOW_MS) {
      this.#quickCalls++;
      if (this.#restsUntilMs === 0) return;
      this.#restsUntilMs = 0;
      this.#restMs = this.#options.firstRestMs;
      return;
    }
    const isPassedOver = this.#quickCalls >= QUICK_CALLS && tookMs <= VERY_SLOW_MS;
    this.#quickCalls = 0;
    if (isPassedOver) return;
    this.#restsUntilMs = endedMs + this.#restMs;
    this.#restMs = Math.min(2 * this.#restMs, this.#options.lastRestMs);
  }
}
