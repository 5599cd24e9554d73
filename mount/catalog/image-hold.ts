/**
 * The lock that a mount holds on an image for as long as it shows it, so that no other program changes the image
 * between two openings (contents change only through us; the kernel's page cache relies on it).
 *
 * Calls for one image are made one after another by its entry.
 */
import type { BlockError } from '../../src/base/block-error.ts';
import { toBlockError } from '../../src/base/block-error.ts';
import type { ImageLock, ImageLocks, LockMode } from '../../src/block/image-locks.ts';
import { isUrl } from '../../src/block/remote-url.ts';

class ImageHold {
  readonly #locks: ImageLocks;
  #held: { readonly mode: LockMode; readonly lock: ImageLock } | null = null;
  #refusal: BlockError | null = null;

  constructor(locks: ImageLocks) {
    this.#locks = locks;
  }

  /** Why the last attempt failed; null when the lock is held, or was never asked for. */
  get refusal(): BlockError | null {
    return this.#refusal;
  }

  /**
   * Holds the lock in this mode. The new lock is taken before the old one goes, so nobody gets in between. Never
   * throws: see `refusal`. A refused change leaves the old lock in place.
   */
  async ensure(path: string, mode: LockMode): Promise<void> {
    // A server's files have no locks that could be taken from here.
    if (isUrl(path)) return;
    if (this.#held?.mode === mode) {
      this.#refusal = null;
      return;
    }
    try {
      const lock = await this.#locks.acquire(path, mode);
      const before = this.#held;
      this.#held = { mode, lock };
      this.#refusal = null;
      await before?.lock.release();
    } catch (error) {
      this.#refusal = toBlockError(error, { op: 'lock', path });
    }
  }

  async release(): Promise<void> {
    const held = this.#held;
    this.#held = null;
    await held?.lock.release();
  }
}

/** The locks on an image and on the files that are written with it. */
export class ImageHolds {
  readonly #locks: ImageLocks;
  readonly #holds = new Map<string, ImageHold>();

  constructor(locks: ImageLocks) {
    this.#locks = locks;
  }

  /** Why one of the last attempts failed; null when all are held. */
  get refusal(): BlockError | null {
    for (const hold of this.#holds.values()) if (hold.refusal !== null) return hold.refusal;
    return null;
  }

  /** See `ImageHold.ensure`; other paths than these are given back. */
  async ensure(paths: readonly string[], mode: LockMode): Promise<void> {
    for (const path of paths) {
      const hold = this.#holds.get(path) ?? new ImageHold(this.#locks);
      this.#holds.set(path, hold);
      await hold.ensure(path, mode);
    }
    for (const [path, hold] of this.#holds) {
      if (paths.includes(path)) continue;
      this.#holds.delete(path);
      await hold.release();
    }
  }

  async release(): Promise<void> {
    for (const hold of this.#holds.values()) await hold.release();
    this.#holds.clear();
  }
}
