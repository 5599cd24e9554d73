/**
 * Whether the control plane looks at the ring for a moment before it sleeps. Two wake-ups of its thread cost more than many a fault; but
 * who looks takes a core from those who have something to do. So it looks while the last requests came so soon that sleeping was
 * not worth it, gives the core to any other thread that wants it, and sleeps at once after requests that came late.
 */

/** For so long it looks, in ms. */
const LOOK_MS = 0.06;
/** Between two turns of the event loop, whose other work must not wait. */
const TURN_MS = 1;
/** Requests in a row that came soon, before it looks; and so many that one which did not is passed over. */
const SOON = 8;
const LONG_SOON = 64;

export interface RingWatchOptions {
  /** The slot that has come, -1 for none. */
  readonly next: () => number;
  /** Something was begun whose next step needs the event loop. */
  readonly isBusy: () => boolean;
  /** Lets another thread that waits for this core have it. */
  readonly yieldCore: () => void;
  /** In ms. */
  readonly now: () => number;
}

export class RingWatch {
  readonly #options: RingWatchOptions;
  #soon = 0;
  #begunMs = 0;
  #sleptMs = 0;
  /** It has looked in vain before it fell asleep, and that counts already. */
  #isMissCounted = false;

  constructor(options: RingWatchOptions) {
    this.#options = options;
  }

  /** The doorbell has rung: a turn begins. */
  woken(): void {
    this.#begunMs = this.#options.now();
    if (this.#begunMs - this.#sleptMs < 2 * LOOK_MS) this.#cameSoon();
    else if (!this.#isMissCounted) this.#cameLate();
    this.#isMissCounted = false;
  }

  /** The event loop's other work has waited long enough. */
  get isTurnOver(): boolean {
    return this.#options.now() - this.#begunMs > TURN_MS;
  }

  /** The slot that came while it looked; -1: it is time to sleep. */
  look(): number {
    const { next, isBusy, yieldCore, now } = this.#options;
    const begunMs = now();
    this.#sleptMs = begunMs;
    if (this.#soon < SOON || isBusy() || this.isTurnOver) return -1;
    for (let at = begunMs; at - begunMs < LOOK_MS; at = now()) {
      const slot = next();
      if (slot >= 0) {
        this.#cameSoon();
        return slot;
      }
      yieldCore();
    }
    this.#cameLate();
    this.#isMissCounted = true;
    return -1;
  }

  #cameSoon(): void {
    this.#soon = Math.min(LONG_SOON, this.#soon + 1);
  }

  #cameLate(): void {
    this.#soon = this.#soon === LONG_SOON ? SOON : 0;
  }
}
