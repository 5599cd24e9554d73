/**
 * Closes what somebody may still use beside the requests of its node, when the last of them has ended: nobody waits for a host that
 * hangs in a call, and no number of a descriptor is given away under it.
 */
export class LateClose {
  #users = 0;
  #close: (() => Promise<void>) | null = null;

  /** It stays open until the returned function is called. */
  hold(): () => void {
    this.#users++;
    let isHeld = true;
    return () => {
      if (!isHeld) return;
      isHeld = false;
      if (--this.#users > 0) return;
      // Whoever closed it has gone on: there is nobody to tell.
      this.#close?.().catch(() => undefined);
      this.#close = null;
    };
  }

  /** At once, or later in the background. Called once. Errors: those of the closing, when it is done at once. */
  async close(close: () => Promise<void>): Promise<void> {
    if (this.#users > 0) this.#close = close;
    else await close();
  }
}
