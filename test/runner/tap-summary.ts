/** The closing counts of node's test runner, and what failed. */

export interface Counts {
  tests: number;
  suites: number;
  pass: number;
  fail: number;
  cancelled: number;
  skipped: number;
  todo: number;
}

export const noCounts = (): Counts => ({
  tests: 0,
  suites: 0,
  pass: 0,
  fail: 0,
  cancelled: 0,
  skipped: 0,
  todo: 0,
});

const COUNT_LINE = /^# (?<name>tests|suites|pass|fail|cancelled|skipped|todo) (?<count>\d+)$/;

/** The counts at the end of a TAP stream; null when the runner did not get so far. */
export const countsOf = (tap: string): Counts | null => {
  const counts = noCounts();
  let seen = 0;
  for (const line of tap.trimEnd().split('\n').slice(-12)) {
    const groups = COUNT_LINE.exec(line)?.groups;
    if (groups === undefined) continue;
    counts[groups['name'] as keyof Counts] = Number(groups['count']);
    seen++;
  }
  return seen === Object.keys(counts).length ? counts : null;
};

export const addCounts = (sum: Counts, more: Counts): void => {
  for (const key of Object.keys(sum) as (keyof Counts)[]) sum[key] += more[key];
};

/** As node's runner closes its output. */
export const closingLines = (counts: Counts, durationMs: number): string =>
  `${Object.entries(counts)
    .map(([name, count]) => `# ${name} ${count}`)
    .join('\n')}\n# duration_ms ${durationMs}\n`;
