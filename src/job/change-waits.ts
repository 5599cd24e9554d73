/** Waits that end when something about a job has changed. Several parts of it may wait at once. */
export class ChangeWaits {
  readonly #wakers = new Set<() => void>();
  #isAsleep = false;

  /** Somebody has begun to wait, and nobody has gone on since. */
  get isAsleep(): boolean {
    return this.#isAsleep;
  }

  /** Something has changed: who waits goes on. */
  wake(): void {
    for (const wake of this.#wakers) wake();
  }

  /** Until something changes, or so many ms have passed. */
  async untilChanged(ms: number | null): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    let wake: () => void = () => undefined;
    this.#isAsleep = true;
    await new Promise<void>((resolve) => {
      wake = resolve;
      this.#wakers.add(resolve);
      if (ms !== null) timer = setTimeout(resolve, ms);
    });
    this.#isAsleep = false;
    clearTimeout(timer);
    this.#wakers.delete(wake);
  }
}
