/** Several copies at once, within a bound; the first one that fails ends it. */

export class Copies {
  readonly #most: () => number;
  readonly #running = new Set<Promise<void>>();
  #failure: { readonly error: unknown } | null = null;

  /** `most`: how many may run at once, now. */
  constructor(most: () => number) {
    this.#most = most;
  }

  /** Begins a copy as soon as there is room. Errors: that of an earlier copy. */
  async begin(copy: () => Promise<void>): Promise<void> {
    while (this.#running.size >= this.#most()) await Promise.race(this.#running);
    this.#throwFailure();
    const running = copy()
      .catch((error: unknown) => {
        this.#failure ??= { error };
      })
      .finally(() => this.#running.delete(running));
    this.#running.add(running);
  }

  /** Resolves when none runs any more. Errors: that of the first that failed. */
  async finish(): Promise<void> {
    await this.settled();
    this.#throwFailure();
  }

  /** As `finish`, but without the error. */
  async settled(): Promise<void> {
    await Promise.all(this.#running);
  }

  #throwFailure(): void {
    if (this.#failure !== null) throw this.#failure.error;
  }
}
