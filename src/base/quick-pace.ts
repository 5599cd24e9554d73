/**
 * When short system calls are made at once rather than on another thread, whose two wake-ups cost ten times what such a call
 * does. The event loop must not wait for a disk: after a call that was slow the long way is taken for a while.
 */

const SLOW_MS = 2;

export interface QuickPaceOptions {
  /** After the first slow call, in ms; twice as long after each that follows. */
  readonly firstRestMs: number;
  readonly lastRestMs: number;
}

export class QuickPace {
  readonly #options: QuickPaceOptions;
  #restMs: number;
  #restsUntilMs = 0;

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
      const ended = performance.now();
      if (ended - begun > SLOW_MS) {
        this.#restsUntilMs = ended + this.#restMs;
        this.#restMs = Math.min(2 * this.#restMs, this.#options.lastRestMs);
      } else if (this.#restsUntilMs !== 0) {
        this.#restsUntilMs = 0;
        this.#restMs = this.#options.firstRestMs;
      }
    }
  }
}
