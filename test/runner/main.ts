/**
 * Runs all tests, room by room, with node's own runner, and closes with the sums of its counts.
 *
 *     node dist/test/runner/main.js [--soak] [--only ROOM[,ROOM]] [--factor N] [--seconds N]
 *
 * SEED and COUNT come from the environment; without SEED one is chosen and printed. A room fails that takes longer than
 * its budget, and the run fails that leaves something behind.
 */
import { spawn } from 'node:child_process';
import { existsSync, readdirSync, rmSync } from 'node:fs';
import { join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { BUDGETS, type RoomBudget, SOAK_SECONDS, TOTAL_SECONDS } from './budgets.ts';
import { findLeftovers, openRunDirectory, RUN_MARK, removeLeftovers } from './leftovers.ts';
import { addCounts, type Counts, closingLines, countsOf, noCounts } from './tap-summary.ts';

const TEST_ROOT = fileURLToPath(new URL('..', import.meta.url));
const PROJECT_ROOT = fileURLToPath(new URL('../../..', import.meta.url));
const MARK = `${process.pid}-${Date.now()}`;
const KILL_GRACE_MS = 10_000;
const TEMPORARY = openRunDirectory();
/** Engines rehearse where speed and memory are measured, and in tests of it; half a second of processor time a mount is for the soak in all others. */
const REHEARSING_ROOM = 'timing';

interface Outcome {
  readonly counts: Counts;
  readonly problems: readonly string[];
}

const testFiles = (directory: string): string[] =>
  readdirSync(directory, { withFileTypes: true, recursive: true })
    .filter((entry) => entry.isFile() && entry.name.endsWith('.test.js'))
    .map((entry) => join(entry.parentPath, entry.name))
    .sort();

let running: { kill: () => void } | null = null;

const runNode = (
  args: readonly string[],
  env: NodeJS.ProcessEnv,
  seconds: number,
): Promise<{ tap: string; timedOut: boolean }> =>
  new Promise((resolve, reject) => {
    // A process group of its own, so that a run over its time ends with everything that it started.
    const child = spawn(process.execPath, [...args], {
      cwd: PROJECT_ROOT,
      env,
      stdio: ['ignore', 'pipe', 'inherit'],
      detached: true,
    });
    const signal = (name: NodeJS.Signals): void => {
      try {
        if (child.pid !== undefined) process.kill(-child.pid, name);
      } catch {
        // It has ended.
      }
    };
    running = { kill: () => signal('SIGKILL') };
    let tap = '';
    let timedOut = false;
    const timer = setTimeout(() => {
      timedOut = true;
      signal('SIGTERM');
      setTimeout(() => signal('SIGKILL'), KILL_GRACE_MS).unref();
    }, seconds * 1000);
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      tap += text;
      process.stdout.write(text);
    });
    child.once('error', reject);
    child.once('close', () => {
      clearTimeout(timer);
      running = null;
      resolve({ tap, timedOut });
    });
  });

const runRoom = async (
  budget: RoomBudget,
  options: { soak: boolean; factor: number; seed: string; soakSeconds: number },
): Promise<Outcome> => {
  const directory = join(TEST_ROOT, budget.room);
  const files = existsSync(directory) ? testFiles(directory) : [];
  if (files.length === 0) return { counts: noCounts(), problems: [] };
  const limit = options.soak ? options.soakSeconds : budget.seconds;
  const env = {
    ...process.env,
    [RUN_MARK]: MARK,
    TMPDIR: TEMPORARY,
    VDISKFS_REHEARSAL: options.soak || budget.room === REHEARSING_ROOM ? 'on' : 'off',
    SEED: options.seed,
    COUNT_FACTOR: String(options.factor * (options.soak ? budget.soakFactor : 1)),
  };
  const begun = Date.now();
  const args = [
    '--test',
    '--test-reporter=tap',
    `--test-concurrency=${budget.concurrency}`,
    ...files.map((f) => relative(PROJECT_ROOT, f)),
  ];
  const { tap, timedOut } = await runNode(args, env, limit);
  const counts = countsOf(tap);
  const tookSeconds = Math.round((Date.now() - begun) / 1000);
  process.stdout.write(`\n== ${budget.room}: ${tookSeconds} s of ${limit} s\n\n`);
  const problems: string[] = [];
  if (timedOut) problems.push(`room ${budget.room} took longer than its ${limit} s`);
  else if (counts === null) problems.push(`room ${budget.room} ended without counts`);
  if (counts !== null && counts.skipped + counts.todo > 0)
    problems.push(`room ${budget.room} skipped tests`);
  return { counts: counts ?? noCounts(), problems };
};

const checkLeftovers = (): string[] => {
  const found = findLeftovers(MARK);
  removeLeftovers(found);
  return found.map((l) => `left behind: ${l.what}`);
};

const main = async (): Promise<number> => {
  const { values } = parseArgs({
    options: {
      soak: { type: 'boolean', default: false },
      only: { type: 'string' },
      factor: { type: 'string', default: '1' },
      seconds: { type: 'string', default: String(SOAK_SECONDS) },
    },
  });
  const sum = BUDGETS.reduce((seconds, b) => seconds + b.seconds, 0);
  if (sum > TOTAL_SECONDS)
    throw new Error(`the budgets sum to ${sum} s, more than ${TOTAL_SECONDS} s`);
  const seed = process.env['SEED'] ?? String(Math.floor(Math.random() * 2 ** 31));
  process.stdout.write(`SEED=${seed}\n`);
  const only = values.only?.split(',') ?? BUDGETS.map((b) => b.room);
  const begun = Date.now();
  const total = noCounts();
  const problems: string[] = [];
  for (const budget of BUDGETS.filter((b) => only.includes(b.room))) {
    const options = {
      soak: values.soak,
      factor: Number(values.factor),
      seed,
      soakSeconds: Number(values.seconds),
    };
    const outcome = await runRoom(budget, options);
    addCounts(total, outcome.counts);
    problems.push(...outcome.problems, ...checkLeftovers());
  }
  for (const problem of problems) process.stdout.write(`not ok - ${problem}\n`);
  total.tests += problems.length;
  total.fail += problems.length;
  rmSync(TEMPORARY, { recursive: true, force: true });
  process.stdout.write(`SEED=${seed}\n${closingLines(total, Date.now() - begun)}`);
  return total.fail + total.cancelled === 0 && total.tests > 0 ? 0 : 1;
};

for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  process.once(signal, () => {
    running?.kill();
    removeLeftovers(findLeftovers(MARK));
    rmSync(TEMPORARY, { recursive: true, force: true });
    process.exit(1);
  });
}
process.exitCode = await main();
