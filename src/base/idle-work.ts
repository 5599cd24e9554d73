/**
 * Work of this thread that somebody would have to do later, in pieces of some ten microseconds: done while the thread has nothing to do
 * but wait, and else one piece in each turn of the event loop.
 */

/** Pieces in the order in which they were offered. For one thread. */
export class IdleWork {
  readonly #pieces: (() => void)[] = [];
  #immediate: NodeJS.Immediate | null = null;

  /** `piece` runs once, and not within this call. It must not throw; it may offer the next one. */
  offer(piece: () => void): void {
    this.#pieces.push(piece);
    this.#immediate ??= setImmediate(() => this.#turnHasEnded());
  }

  /** Does the piece that has waited longest. False: there was none. */
  doOne(): boolean {
    const piece = this.#pieces.shift();
    piece?.();
    return piece !== undefined;
  }

  // One at a time: the event loop looks for what has arrived in between.
  #turnHasEnded(): void {
    this.#immediate = null;
    this.doOne();
    if (this.#pieces.length > 0) this.#immediate ??= setImmediate(() => this.#turnHasEnded());
  }
}

/** That of this thread. */
export const idleWork = new IdleWork();
