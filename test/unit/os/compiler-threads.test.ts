/** Which of a process's threads compile, as the kernel counts their time. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { COMPILER_THREADS, COMPILER_THREADS_OPTION } from '../../../src/os/compiler-threads.ts';
import { run } from '../../support/vdiskfs.ts';

const MODULE = new URL('../../../src/os/compiler-threads.js', import.meta.url).href;

/** Lowers, then has so many functions compiled that the helpers are seen; prints each thread's nice value and run time. */
const PROGRAM = `
import { readdirSync, readFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { getPriority } from 'node:os';
import { lowerCompilerThreads } from ${JSON.stringify(MODULE)};
const lowered = lowerCompilerThreads();
await readFile('/proc/self/status');
const threads = () => readdirSync('/proc/self/task').map(Number);
const ran = (thread) => Number(readFileSync('/proc/self/task/' + thread + '/schedstat', 'utf8').split(' ')[0]);
const before = new Map(threads().map((thread) => [thread, ran(thread)]));
let sum = 0;
for (let f = 0; f < 200; f++) {
  const body = 'let s = 0; for (let i = 0; i < n; i++) s = (s * 31 + (i ^ ' + f + ')) | 0; return s;';
  const hot = new Function('n', body);
  for (let i = 0; i < 400; i++) sum += hot(1000);
}
console.log(JSON.stringify({
  lowered,
  sum,
  threads: threads().map((thread) => ({
    thread,
    isMain: thread === process.pid,
    nice: getPriority(thread),
    ranMs: (ran(thread) - (before.get(thread) ?? 0)) / 1e6,
  })),
}));
`;

interface Seen {
  readonly lowered: readonly number[];
  readonly threads: readonly {
    readonly thread: number;
    readonly isMain: boolean;
    readonly nice: number;
    readonly ranMs: number;
  }[];
}

test('the threads that compile, and no others, have a lower priority', async () => {
  const node = [COMPILER_THREADS_OPTION, '--input-type=module', '-e', PROGRAM];
  const done = await run(process.execPath, node);
  assert.equal(done.status, 0, done.stderr);
  const { lowered, threads } = JSON.parse(done.stdout) as Seen;
  assert.equal(lowered.length, COMPILER_THREADS);
  const own = threads.find(({ isMain }) => isMain)?.nice ?? Number.NaN;
  const others = threads.filter(({ isMain }) => !isMain);
  for (const { thread, nice } of threads)
    assert.equal(nice > own, lowered.includes(thread), `thread ${thread} has ${nice}`);
  const sumOf = (isLowered: boolean): number =>
    others
      .filter(({ thread }) => lowered.includes(thread) === isLowered)
      .reduce((sum, { ranMs }) => sum + ranMs, 0);
  assert.ok(sumOf(true) > 5, `they compiled for ${sumOf(true)} ms`);
  assert.ok(sumOf(false) < 1, `the others ran for ${sumOf(false)} ms`);
});

test('where it is not known how many there are, none is lowered', async () => {
  const done = await run(process.execPath, ['--input-type=module', '-e', PROGRAM]);
  assert.equal(done.status, 0, done.stderr);
  const { lowered, threads } = JSON.parse(done.stdout) as Seen;
  assert.deepEqual(lowered, []);
  assert.equal(new Set(threads.map(({ nice }) => nice)).size, 1);
});
