/**
 * When requests of a view may begin: the count of those in flight, the drained section, and the hold while another host may
 * use the image.
 *
 * A drained section waits for what has begun; a hold does not. Both keep what comes later waiting, in order, and fail
 * none of it.
 */
export class Admission {
  #active = 0;
  #whenIdle: (() => void) | null = null;
  #drain: Promise<void> | null = null;
  #hold: { readonly granted: Promise<void>; readonly grant: () => void } | null = null;

  /** Requests that have begun and not ended. */
  get active(): number {
    return this.#active;
  }

  /** Resolves when the drained section ends, which may still wait for requests in flight; null outside of one. */
  get drain(): Promise<void> | null {
    return this.#drain;
  }

  /** Resolves when requests are held no longer; null when they are not. */
  get hold(): Promise<void> | null {
    return this.#hold?.granted ?? null;
  }

  /** What a request waits for before it begins; null for nothing. */
  get wait(): Promise<void> | null {
    return this.#hold?.granted ?? this.#drain;
  }

  /** From now on requests wait, however long, until `endHold`. Idempotent. */
  beginHold(): void {
    if (this.#hold !== null) return;
    let grant = (): void => undefined;
    const granted = new Promise<void>((resolve) => {
      grant = resolve;
    });
    this.#hold = { granted, grant };
  }

  /** Idempotent. */
  endHold(): void {
    this.#hold?.grant();
    this.#hold = null;
  }

  /** Runs a request when it may begin. Errors: those of `run`; the signal's reason, when it is aborted before that. */
  async request<T>(run: () => Promise<T>, signal?: AbortSignal): Promise<T> {
    for (let wait = this.wait; wait !== null; wait = this.wait) await wait;
    signal?.throwIfAborted();
    this.#active++;
    try {
      return await run();
    } finally {
      this.#active--;
      if (this.#active === 0) {
        this.#whenIdle?.();
        this.#whenIdle = null;
      }
    }
  }

  /** Runs `change` while no request is in flight. Sections queue behind each other; a request that called it would wait for itself. */
  async drained<T>(change: () => Promise<T>): Promise<T> {
    while (this.#drain !== null) await this.#drain;
    let end = (): void => undefined;
    this.#drain = new Promise((resolve) => {
      end = resolve;
    });
    try {
      if (this.#active > 0) await new Promise<void>((resolve) => (this.#whenIdle = resolve));
      return await change();
    } finally {
      this.#drain = null;
      end();
    }
  }
}
