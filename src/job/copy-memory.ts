/**
 * The memory that all copies in flight of a mount's jobs take together: those that copy at a moment have equal shares of it, so
 * that ten jobs at once take what four do.
 */
export class CopyMemory {
  readonly #bytes: number;
  readonly #users = new Set<object>();

  /** `bytes`: of all together. One that copies may take a single piece whatever its share is. */
  constructor(bytes: number) {
    this.#bytes = bytes;
  }

  /** In bytes, of one that copies or is about to. */
  shareOf(user: object): number {
    const others = this.#users.has(user) ? this.#users.size - 1 : this.#users.size;
    return Math.floor(this.#bytes / (others + 1));
  }

  join(user: object): void {
    this.#users.add(user);
  }

  leave(user: object): void {
    this.#users.delete(user);
  }
}
