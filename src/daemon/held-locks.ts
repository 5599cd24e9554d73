/**
 * The image locks of a mount, by number: engines ask for them, and those of an engine that died, or gives its work away, are
 * kept until the next one serves, so that no other program gets in between.
 */
import { toBlockError } from '../base/block-error.ts';
import type { ImageLock, ImageLocks } from '../block/image-locks.ts';
import type { LockAsked, LockOutcome } from './messages.ts';

export class HeldLocks {
  readonly #locks: ImageLocks;
  readonly #held = new Map<number, { readonly lock: ImageLock; readonly generation: number }>();
  #next = 1;

  constructor(locks: ImageLocks) {
    this.#locks = locks;
  }

  /** One after the other. Never rejects: why a lock is not had is its outcome. */
  async acquireAll(asked: readonly LockAsked[], generation: number): Promise<LockOutcome[]> {
    const outcomes: LockOutcome[] = [];
    for (const { path, mode } of asked) {
      try {
        const lock = await this.#locks.acquire(path, mode);
        this.#held.set(this.#next, { lock, generation });
        outcomes.push({ lock: this.#next++, tenure: lock.tenure });
      } catch (error) {
        outcomes.push({ error: toBlockError(error).toWire() });
      }
    }
    return outcomes;
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
