/**
 * Grace periods over requests in flight, as in read-copy-update: a request enters before it resolves an
 * offset and leaves when its I/O has ended; `quiesce` resolves when every request that had entered before the
 * call has left. Requests that enter later do not delay it, so it always ends when I/O does.
 *
 * Single-threaded: all calls come from the event loop of one engine.
 */
export class Epochs {
  #current: Epoch = { active: 0, waiters: [], next: null };
  /** Oldest epoch that may still have requests; the list runs from here to `#current`. */
  #oldest: Epoch = this.#current;

  /** Returns the token for `leave`. */
  enter(): EpochToken {
    this.#current.active++;
    return this.#current;
  }

  leave(token: EpochToken): void {
    const epoch = token as Epoch;
    epoch.active--;
    this.#retire();
  }

  get active(): number {
    let sum = 0;
    for (let e: Epoch | null = this.#oldest; e !== null; e = e.next) sum += e.active;
    return sum;
  }

  quiesce(): Promise<void> {
    if (this.#oldest === this.#current && this.#current.active === 0) return Promise.resolve();
    const closing = this.#current;
    const fresh: Epoch = { active: 0, waiters: [], next: null };
    closing.next = fresh;
    this.#current = fresh;
    const done = new Promise<void>((resolve) => closing.waiters.push(resolve));
    this.#retire();
    return done;
  }

  // An epoch is over only when all older ones are: its waiters wait for everything before them.
  #retire(): void {
    while (this.#oldest.active === 0 && this.#oldest.next !== null) {
      const over = this.#oldest;
      this.#oldest = this.#oldest.next;
      for (const resolve of over.waiters) resolve();
    }
  }
}

/** Opaque; give it back to `leave` exactly once. */
export type EpochToken = object;

interface Epoch {
  active: number;
  waiters: (() => void)[];
  next: Epoch | null;
}
