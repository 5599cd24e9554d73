/**
 * How many handles the kernel has on each view, as far as this engine has seen. An engine that takes a mount over has
 * missed the opens before it, and must take every view for open for writing.
 */
import { O_ACCMODE } from './abi.ts';

interface Handles {
  all: number;
  writable: number;
}

export class OpenHandles {
  readonly #byNode = new Map<number, Handles>();
  readonly #inherited: boolean;

  /** `inherited`: there were engines before this one. */
  constructor(options: { readonly inherited: boolean }) {
    this.#inherited = options.inherited;
  }

  opened(nodeId: number, flags: number): void {
    const known = this.#byNode.get(nodeId) ?? { all: 0, writable: 0 };
    known.all++;
    if ((flags & O_ACCMODE) !== 0) known.writable++;
    this.#byNode.set(nodeId, known);
  }

  /** `flags`: those of the open, as RELEASE repeats them. Returns whether this engine knew the handle. */
  released(nodeId: number, flags: number): boolean {
    const known = this.#byNode.get(nodeId);
    if (known === undefined) return false;
    known.all--;
    if ((flags & O_ACCMODE) !== 0) known.writable = Math.max(0, known.writable - 1);
    if (known.all === 0) this.#byNode.delete(nodeId);
    return true;
  }

  /** Whether a handle may be open: one that an earlier engine saw opened counts. */
  mayBeOpen(nodeId: number): boolean {
    return this.#inherited || this.#byNode.has(nodeId);
  }

  /** Whether the kernel may hold pages of the view that were written and not sent yet. */
  mayHoldDirtyPages(nodeId: number): boolean {
    return this.#inherited || (this.#byNode.get(nodeId)?.writable ?? 0) > 0;
  }
}
