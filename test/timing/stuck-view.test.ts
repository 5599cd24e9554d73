/** One view whose image does not answer does not slow the others. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { CleanupStack } from '../support/cleanup-stack.ts';
import { tool } from '../support/file-tools.ts';
import { type Cleanup, scratchDirectory } from '../support/scratch.ts';
import { run } from '../support/vdiskfs.ts';

const SERVER = fileURLToPath(new URL('../support/stuck-server.js', import.meta.url));
const DEPTH = 256;
/** Latencies here have two modes, by where the scheduler puts threads: the comparison is made again when they differ. */
const ROUNDS = 5;

interface FioResult {
  readonly jobs: readonly {
    readonly read: { readonly clat_ns: { readonly percentile: Record<string, number> } };
  }[];
}

const medianLatencyNs = async (path: string): Promise<number> => {
  const out = await tool('fio', [
    '--name=quick',
    `--filename=${path}`,
    '--rw=randread',
    '--bs=4k',
    '--direct=1',
    '--ioengine=psync',
    '--size=64M',
    '--runtime=1',
    '--time_based',
    '--output-format=json',
  ]);
  const result = JSON.parse(out.slice(out.indexOf('{'))) as FioResult;
  return result.jobs[0]?.read.clat_ns.percentile['50.000000'] ?? Number.NaN;
};

const said = (stream: NodeJS.ReadableStream, line: string): Promise<void> =>
  new Promise((resolve) => {
    const look = (chunk: Buffer): void => {
      if (!chunk.toString('utf8').includes(line)) return;
      stream.off('data', look);
      resolve();
    };
    stream.on('data', look);
  });

/** Requests of the stuck view that the kernel has under way: asynchronous direct reads, none of which is answered. */
const loadStuckView = (cleanup: Cleanup, path: string): (() => Promise<void>) => {
  const args = [
    '--name=stuck',
    `--filename=${path}`,
    '--rw=randread',
    '--bs=4k',
    '--direct=1',
    '--ioengine=libaio',
    `--iodepth=${DEPTH}`,
    '--size=64M',
    `--number_ios=${DEPTH}`,
  ];
  const child = spawn('fio', args, { stdio: 'ignore' });
  const ended = new Promise<void>((resolve) => child.once('exit', () => resolve()));
  cleanup.after(async () => void child.kill('SIGKILL'));
  return async () => {
    await ended;
  };
};

/** A reader whose request waits behind the stuck ones dies when it is killed: INTERRUPT answers it. */
const assertInterrupted = async (path: string): Promise<void> => {
  const reader = spawn('dd', [`if=${path}`, 'of=/dev/null', 'bs=4k', 'count=1', 'iflag=direct'], {
    stdio: 'ignore',
  });
  const ended = new Promise<string>((resolve) => reader.once('exit', () => resolve('ended')));
  assert.equal(await Promise.race([ended, sleep(300, 'waits')]), 'waits');
  reader.kill('SIGKILL');
  assert.equal(await Promise.race([ended, sleep(5000, 'hangs')]), 'ended');
};

test(`at depth ${DEPTH} on a view that never answers, another view stays within twice its latency`, async (t) => {
  const cleanup = new CleanupStack(t);
  const root = await scratchDirectory(cleanup);
  const mountpoint = join(root, 'mnt');
  await mkdir(mountpoint);
  const server = spawn(process.execPath, [SERVER, mountpoint], {
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  const serverEnded = new Promise<number | null>((resolve) => server.once('exit', resolve));
  cleanup.after(async () => {
    server.stdin.end();
    await run('umount', ['-l', mountpoint]);
    server.kill('SIGKILL');
  });
  await said(server.stdout, 'ready');

  const quick = join(mountpoint, 'quick.raw');
  const stuck = join(mountpoint, 'stuck.raw');
  const figures: string[] = [];
  let held = false;
  for (let round = 0; round < ROUNDS && !held; round++) {
    if (round > 0) server.stdin.write('again\n');
    const isHeld = said(server.stdout, 'held');
    const stuckEnds = loadStuckView(cleanup, stuck);
    await isHeld;
    const beside = await medianLatencyNs(quick);
    if (round === 0) await assertInterrupted(stuck);
    server.stdin.write('go\n');
    await stuckEnds();
    const alone = await medianLatencyNs(quick);
    held = beside <= 2 * alone;
    figures.push(`${Math.round(beside / 1000)} µs beside it, ${Math.round(alone / 1000)} µs alone`);
  }
  t.diagnostic(figures.join('; '));
  assert.ok(held, figures.join('; '));
  assert.equal((await run('umount', [mountpoint])).status, 0);
  assert.equal(await serverEnded, 0);
});
