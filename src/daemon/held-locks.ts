/**
 * The image locks of a mount, by number: engines ask for them, and those of an engine that died, or gives its work away, are
 * kept until the next one serves, so that no other program gets in between.
 */
import { toBlockError } from '../base/block-error.ts';
import type { DatedLocks, ImageLock } from '../block/image-locks.ts';
import type { LockAsked, LockOutcome } from './messages.ts';

export class HeldLocks {
  readonly #locks: DatedLocks;
  readonly #held = new Map<number, { readonly lock: ImageLock; readonly generation: number }>();
  /** When each generation asked for its first lock: what was held then, it has from an earlier one. */
  readonly #begunMs = new Map<number, number>();
  #next = 1;

  constructor(locks: DatedLocks) {
    this.#locks = locks;
  }

  /** One after the other. Never rejects: why a lock is not had is its outcome. */
  async acquireAll(asked: readonly LockAsked[], generation: number): Promise<LockOutcome[]> {
    const outcomes: LockOutcome[] = [];
    const begunMs = this.#begunMs.get(generation) ?? performance.now();
    this.#begunMs.set(generation, begunMs);
    for (const { path, mode } of asked) {
      try {
        const lock = await this.#locks.acquire(path, mode);
        this.#held.set(this.#next, { lock, generation });
        const { heldSinceMs } = lock;
        const isContinued = heldSinceMs !== null && heldSinceMs < begunMs;
        outcomes.push({ lock: this.#next++, isContinued });
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
    for (const earlier of this.#begunMs.keys())
      if (earlier < generation) this.#begunMs.delete(earlier);
    for (const [number, held] of this.#held) {
      if (held.generation < generation) void this.release(number);
    }
  }

  releaseAll(): void {
    for (const number of [...this.#held.keys()]) void this.release(number);
  }
}
