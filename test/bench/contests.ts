/** Contests: rows whose two sides do more than serve one image; each brings its own way to run vdiskfs and QEMU. */
import { type Measured, verdictOf } from './measure.ts';
import { comparePairs, type Metrics } from './rounds.ts';
import type { Target } from './rows.ts';

export interface Contest {
  readonly name: string;
  readonly targets: readonly Target[];
  /** What both sides need, made once. */
  readonly prepare: (directory: string) => Promise<Sides>;
}

export interface Sides {
  readonly ours: () => Promise<Metrics>;
  readonly theirs: () => Promise<Metrics>;
  readonly close: () => Promise<void>;
}

export const measureContest = async (
  contest: Contest,
  directory: string,
  pairs: number,
): Promise<readonly Measured[]> => {
  const sides = await contest.prepare(directory);
  try {
    const compared = await comparePairs(pairs, sides.ours, sides.theirs);
    return compared.map((c) => {
      const target = contest.targets.find((t) => t.metric === c.metric) ?? null;
      return { ...c, row: contest.name, target, holds: verdictOf(target, c.ratio.median) };
    });
  } finally {
    await sides.close();
  }
};
