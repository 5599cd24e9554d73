/** Limits bytes per second: whoever has used up what the past allowed waits until time has caught up. */

/** What may be used at once after a pause, in ms of the rate: less would make each request wait for a timer. */
const BURST_MS = 100;

export class RateLimit {
  readonly #now: () => number;
  #bytesPerSecond = 0;
  /** When everything that was used is paid for; in ms of `now`. */
  #paidAtMs = 0;

  /** `now`: a monotonic clock in ms. */
  constructor(now: () => number = () => performance.now()) {
    this.#now = now;
  }

  get bytesPerSecond(): number {
    return this.#bytesPerSecond;
  }

  /** 0: no limit. What was used under the old rate is forgotten. */
  set bytesPerSecond(value: number) {
    this.#bytesPerSecond = value;
    this.#paidAtMs = this.#now();
  }

  /** How long to wait before the next use, in ms; 0 for not at all. */
  delayMs(): number {
    if (this.#bytesPerSecond === 0) return 0;
    return Math.max(0, this.#paidAtMs - BURST_MS - this.#now());
  }

  use(bytes: number): void {
    if (this.#bytesPerSecond === 0) return;
    const from = Math.max(this.#paidAtMs, this.#now());
    this.#paidAtMs = from + (bytes / this.#bytesPerSecond) * 1000;
  }
}
