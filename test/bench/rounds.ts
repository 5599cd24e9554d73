/** Pairs of measurements taken one after the other, A B A B, and what their ratios say. */

/** One measurement: metrics by name. */
export type Metrics = ReadonlyMap<string, number>;

/** What ends within a second begins when a server has been up for so long: an engine of ours rehearses before (src/daemon/rehearsal.ts). */
export const SETTLED_MS = 1000;

export interface Spread {
  readonly median: number;
  readonly min: number;
  readonly max: number;
}

export interface Compared {
  readonly metric: string;
  /** Of ours to theirs, pair by pair. */
  readonly ratio: Spread;
  readonly ours: Spread;
  readonly theirs: Spread;
}

export const spreadOf = (values: readonly number[]): Spread => {
  const sorted = values.toSorted((a, b) => a - b);
  const at = (index: number): number => sorted[index] ?? Number.NaN;
  const middle = Math.floor(sorted.length / 2);
  const median = sorted.length % 2 === 1 ? at(middle) : (at(middle - 1) + at(middle)) / 2;
  return { median, min: at(0), max: at(sorted.length - 1) };
};

/** The machine's speed drifts: only figures of the same pair are ever divided. */
export const comparePairs = async (
  pairs: number,
  ours: () => Promise<Metrics>,
  theirs: () => Promise<Metrics>,
): Promise<readonly Compared[]> => {
  const taken: { ours: Metrics; theirs: Metrics }[] = [];
  for (let pair = 0; pair < pairs; pair++) {
    taken.push({ ours: await ours(), theirs: await theirs() });
  }
  const names = [...(taken[0]?.ours.keys() ?? [])];
  return names.map((metric) => {
    const a = taken.map((t) => t.ours.get(metric) ?? Number.NaN);
    const b = taken.map((t) => t.theirs.get(metric) ?? Number.NaN);
    return {
      metric,
      ratio: spreadOf(a.map((value, i) => value / (b[i] ?? Number.NaN))),
      ours: spreadOf(a),
      theirs: spreadOf(b),
    };
  });
};
