/** How often and from which seed a random test runs: SEED, and COUNT or COUNT_FACTOR, of the environment; REPLAY for one run of it. */

/** The seed of this run. Tests print it in their names. */
export const SEED = Number(process.env['SEED'] ?? 2026);

/** COUNT when it is given, else the test's own default times COUNT_FACTOR; at least 1. */
export const countOf = (byDefault: number): number => {
  const { COUNT, COUNT_FACTOR } = process.env;
  const count = COUNT === undefined ? byDefault * Number(COUNT_FACTOR ?? 1) : Number(COUNT);
  return Math.max(1, Math.round(count));
};

/** For `fc.assert`: REPLAY is the `path` that it printed for a run that failed, with that run's seed in SEED. */
export const REPLAY: { readonly path?: string } =
  process.env['REPLAY'] === undefined ? {} : { path: process.env['REPLAY'] };
