/** What a worker's loop allocates, measured on the heap of a real one. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { scratchDirectory } from '../support/scratch.ts';

const REQUESTS = 150_000;
/** Less than the smallest object that V8 makes and node's own calls do not. */
const TOLERANCE_BYTES = 24;

const program = fileURLToPath(new URL('../support/hit-loop.js', import.meta.url));

/** Bytes a request that the busiest heap of a run was filled with between its collections. */
const allocatedPerRequest = async (mode: string, path: string): Promise<number> => {
  const args = ['--trace-gc', program, mode, String(REQUESTS), path];
  const { stdout } = await promisify(execFile)(process.execPath, args, { maxBuffer: 16 << 20 });
  if (mode === 'worker') assert.match(stdout, new RegExp(`^hits ${REQUESTS} kernel 0$`, 'm'));
  const heaps = new Map<string, { after: number; megabytes: number; collections: number }>();
  const collection = /:(0x\w+)\].*? ([\d.]+) \([\d.]+\) -> ([\d.]+) \(/g;
  for (const [, heap = '', before, after] of stdout.matchAll(collection)) {
    const seen = heaps.get(heap) ?? { after: Number(before), megabytes: 0, collections: 0 };
    seen.megabytes += Number(before) - seen.after;
    heaps.set(heap, { ...seen, after: Number(after), collections: seen.collections + 1 });
  }
  const busiest = Math.max(...[...heaps.values()].map((heap) => heap.megabytes));
  assert.ok(busiest > 0, `${mode}: node's own calls allocate, so a run has collections`);
  return (busiest * 2 ** 20) / REQUESTS;
};

test('a worker allocates nothing for a hit beyond what the system calls of node do', {
  timeout: 180_000,
}, async (t) => {
  const path = join(await scratchDirectory(t), 'file');
  writeFileSync(path, randomBytes(1 << 20));
  const [bare, worker] = [
    await allocatedPerRequest('bare', path),
    await allocatedPerRequest('worker', path),
  ];
  t.diagnostic(`bytes a request: ${worker.toFixed(0)}, of which node's calls ${bare.toFixed(0)}`);
  assert.ok(worker < bare + TOLERANCE_BYTES, `${worker} bytes a request against ${bare}`);
});
