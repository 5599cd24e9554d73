/** Seeded pseudo-random numbers (mulberry32), for tests, back-off jitter and sampling; never for secrets. */
export interface Random {
  /** In [0, 1). */
  next(): number;
  /** Integer in [0, limit). */
  below(limit: number): number;
  pick<T>(items: readonly T[]): T;
  fill(bytes: Uint8Array): void;
}

export const seededRandom = (seed: number): Random => {
  let state = seed >>> 0;
  const next = (): number => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 0x1_0000_0000;
  };
  const below = (limit: number): number => Math.floor(next() * limit);
  return {
    next,
    below,
    pick: (items) => items[below(items.length)] as never,
    fill: (bytes) => {
      for (let i = 0; i < bytes.length; i++) bytes[i] = below(256);
    },
  };
};
