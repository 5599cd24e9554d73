/** Changes of what a node shows, as jobs see them that take part in each. */
import type { GuestOffset } from '../base/units.ts';

export interface ContentChange {
  readonly offset: GuestOffset;
  readonly lengthBytes: number;
  /** What is written; the writer's buffer, which nobody may keep. Null: the range reads as zeros afterwards. */
  readonly bytes: Uint8Array | null;
}

export interface Interposer {
  /**
   * Called in place of a change; `run` makes it, once, and the guest is answered when this resolves. It is outside of the
   * node's requests in flight: it may wait for what waits for those (`Node.quiesce`). Errors fail the guest's request.
   *
   * Writes that the data plane does alone are not seen: they go to pages that are dirty in every bitmap that records.
   */
  around(change: ContentChange, run: () => Promise<void>): Promise<void>;
}

/** A change with everybody who takes part, the first one outermost. */
export const interposed = (
  interposers: readonly Interposer[],
  change: ContentChange,
  run: () => Promise<void>,
): Promise<void> => {
  const [first, ...rest] = interposers;
  if (first === undefined) return run();
  return first.around(change, () => interposed(rest, change, run));
};
