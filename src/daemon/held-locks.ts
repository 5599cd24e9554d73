/**
 * The image locks of a mount, by number: engines ask for them, and those of an engine that died, or gives its work away, are
 * kept until the next one serves, so that no other program gets in between.
 */
import type { ImageLock, ImageLocks, LockMode } from '../block/image-locks.ts';

export class HeldLocks {
  readonly #locks: ImageLocks;
  readonly #held = new Map<number, { readonly lock: ImageLock; readonly generation: number }>();
  #next = 1;

  constructor(locks: ImageLocks) {
    this.#locks = locks;
  }

  /** Errors: those of `ImageLocks.acquire`. */
  async acquire(path: string, mode: LockMode, generation: number): Promise<number> {
    const lock = await this.#locks.acquire(path, mode);
    const number = this.#next++;
    this.#held.set(number, { lock, generation });
    return number;
  }

  async release(number: number): Promise<void> {
    const held = this.#held.get(number);
    this.#held.delete(number);
    await held?.lock.release();
  }

  /** This generation serves: what earlier ones have left is given back. */
  dropBefore(generation: number): void {
    for (const [number, held] of this.#held) {
      if (held.generation < generation) void this.release(number);
    }
  }

  releaseAll(): void {
    for (const number of [...this.#held.keys()]) void this.release(number);
  }
}
