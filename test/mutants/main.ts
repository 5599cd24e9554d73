/**
 * `npm run mutants`: leaves each step that mutations.ts collects out of a copy of the built program, and runs the tests that must notice.
 * Words choose those whose step has one of them. Prints one line a mutant; exits 1 when one survives, when a mutation does not fit the program any more,
 * or when no step has one of the words.
 */
import { spawnSync } from 'node:child_process';
import { cpSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { MUTATIONS, type Mutation } from './mutations.ts';

const PROJECT = fileURLToPath(new URL('../../../', import.meta.url));
const TIMEOUT_MS = 600_000;

type Verdict = 'found' | 'SURVIVED' | 'TIMED OUT' | 'DOES NOT FIT';

const judge = (copy: string, mutation: Mutation): Verdict => {
  const path = join(copy, 'dist', mutation.file);
  const original = readFileSync(path, 'utf8');
  if (original.split(mutation.find).length !== 2) return 'DOES NOT FIT';
  writeFileSync(
    path,
    original.replace(mutation.find, () => mutation.replace),
  );
  try {
    const files = mutation.tests.map((test) => join('dist', test));
    // COUNT_FACTOR: what needs luck to be seen gets more tries than in the tests of every day.
    const env = { ...process.env, COUNT_FACTOR: '4' };
    const options = { cwd: copy, env, stdio: 'ignore' as const, timeout: TIMEOUT_MS };
    const { status, error } = spawnSync(process.execPath, ['--test', ...files], options);
    if (error !== undefined) return 'TIMED OUT';
    return status === 0 ? 'SURVIVED' : 'found';
  } finally {
    writeFileSync(path, original);
  }
};

/** Those whose step has one of the words that were given; all without any. */
const words = process.argv.slice(2);
const wanted = MUTATIONS.filter(
  ({ step }) => words.length === 0 || words.some((word) => step.includes(word)),
);
const copy = mkdtempSync(join(tmpdir(), 'vdiskfs-mutants-'));
let failed = 0;
try {
  cpSync(join(PROJECT, 'dist'), join(copy, 'dist'), { recursive: true });
  cpSync(join(PROJECT, 'package.json'), join(copy, 'package.json'));
  symlinkSync(join(PROJECT, 'node_modules'), join(copy, 'node_modules'));
  for (const mutation of wanted) {
    const verdict = judge(copy, mutation);
    if (verdict !== 'found') failed++;
    process.stdout.write(`${verdict.padEnd(12)} without: ${mutation.step}\n`);
  }
} finally {
  rmSync(copy, { recursive: true, force: true });
}
process.stdout.write(`${wanted.length - failed} passed, ${failed} failed\n`);
if (wanted.length === 0)
  process.stderr.write(`no step has one of these words: ${words.join(' ')}\n`);
process.exitCode = failed === 0 && wanted.length > 0 ? 0 : 1;
