/**
 * Work in parts that go on at the same time. Each is waited for, also when another one fails: the caller takes back what they
 * work with, buffers and locks, when none of them uses it any more. A part that fails while others are still to be begun is
 * nobody's unhandled rejection.
 */
export class Parts<T = void> {
  readonly #begun: Promise<T>[] = [];

  add(part: Promise<T>): void {
    part.catch(() => undefined);
    this.#begun.push(part);
  }

  /** When all have ended. Never rejects. */
  async settled(): Promise<void> {
    await Promise.allSettled(this.#begun);
  }

  /** What they resolved to, in the order in which they were added, when all have ended. Errors: those of the first that failed. */
  async results(): Promise<T[]> {
    await this.settled();
    return Promise.all(this.#begun);
  }
}

/** The same of parts that are begun together. */
export const allOf = <T>(parts: readonly Promise<T>[]): Promise<T[]> => {
  const all = new Parts<T>();
  for (const part of parts) all.add(part);
  return all.results();
};
