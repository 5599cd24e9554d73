/**
 * Locks on byte ranges of one node, first come first served: a range waits for every earlier range that overlaps it,
 * held or waiting, unless both are shared; so nobody starves and ranges that do not overlap never wait.
 *
 * Lock order: one holder never asks for a second range of the same `RangeLocks` while it holds one.
 */
import type { ByteRange } from '../base/range.ts';
import { overlaps } from '../base/range.ts';

interface Holder extends ByteRange {
  readonly shared: boolean;
  /** Earlier overlapping ranges that are still held. */
  blockers: number;
  /** Later ranges that wait for this one. */
  readonly waiting: Holder[];
  grant: (() => void) | null;
}

export interface RangeLock {
  release(): void;
  [Symbol.dispose](): void;
}

export class RangeLocks {
  readonly #held = new Set<Holder>();

  /** Ranges held or waited for. */
  get size(): number {
    return this.#held.size;
  }

  /** True when some held or waiting range overlaps. */
  isBusy(range: ByteRange): boolean {
    for (const other of this.#held) if (overlaps(other, range)) return true;
    return false;
  }

  /** `using lock = await locks.acquire(range)`. Resolves at once (after a microtask) when nothing overlaps. */
  async acquire(
    range: ByteRange,
    { shared }: { readonly shared: boolean } = { shared: false },
  ): Promise<RangeLock> {
    const holder: Holder = {
      shared,
      start: range.start,
      end: range.end,
      blockers: 0,
      waiting: [],
      grant: null,
    };
    for (const other of this.#held) {
      if (!overlaps(other, holder) || (shared && other.shared)) continue;
      other.waiting.push(holder);
      holder.blockers++;
    }
    this.#held.add(holder);
    if (holder.blockers > 0) await new Promise<void>((resolve) => (holder.grant = resolve));
    return this.#lockOf(holder);
  }

  #lockOf(holder: Holder): RangeLock {
    let released = false;
    const release = (): void => {
      if (released) return;
      released = true;
      this.#held.delete(holder);
      for (const next of holder.waiting) if (--next.blockers === 0) next.grant?.();
    };
    return { release, [Symbol.dispose]: release };
  }
}
