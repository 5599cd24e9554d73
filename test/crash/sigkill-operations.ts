/** What the killed guest does: the same for the process that does it and for the test that knows what must be there. */
import type { Random } from '../../src/base/random.ts';

/** Each lane has a part of the disk of its own, so that its order is the order of its content. */
export const LANES = 4;

export interface Operation {
  readonly kind: 'write' | 'discard' | 'zero' | 'flush';
  readonly offset: number;
  /** What the range holds afterwards; empty for a flush. */
  readonly bytes: Uint8Array;
}

export const nextOperation = (random: Random, lane: number, diskBytes: number): Operation => {
  const laneBytes = Math.floor(diskBytes / LANES);
  const length = 1 + random.below(random.below(4) === 0 ? 40_000 : 3000);
  const offset = lane * laneBytes + random.below(laneBytes - length);
  const bytes = new Uint8Array(length);
  const roll = random.below(20);
  if (roll < 14) {
    random.fill(bytes);
    return { kind: 'write', offset, bytes };
  }
  if (roll < 17) return { kind: 'discard', offset, bytes };
  if (roll < 19) return { kind: 'zero', offset, bytes };
  return { kind: 'flush', offset, bytes: new Uint8Array(0) };
};
