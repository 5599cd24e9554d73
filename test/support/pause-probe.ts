/**
 * Reads and writes all of some views all the time, and tells how long its longest request took, on each line of stdin, since
 * the line before: JSON of `{ ms, errors }`.
 *
 *     node pause-probe.js VIEW...
 */
import { constants, open } from 'node:fs/promises';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';

const BLOCK_BYTES = 4096;
const BLOCKS = 4096;

let longestMs = 0;
let errors = 0;
let isEnding = false;

/** A request that is still in flight has lasted since then. */
const began = new Map<number, number>();

const work = async (number: number, path: string): Promise<void> => {
  const file = await open(path, constants.O_RDWR | constants.O_DIRECT);
  const buffer = Buffer.alloc(BLOCK_BYTES, number + 1);
  for (let turn = 0; !isEnding; turn++) {
    const at = Math.floor(Math.random() * BLOCKS) * BLOCK_BYTES;
    const start = performance.now();
    began.set(number, start);
    try {
      if (turn % 2 === 0) await file.write(buffer, 0, BLOCK_BYTES, at);
      else await file.read(buffer, 0, BLOCK_BYTES, at);
    } catch {
      errors++;
    }
    began.delete(number);
    longestMs = Math.max(longestMs, performance.now() - start);
    await sleep(1);
  }
  await file.close();
};

createInterface({ input: process.stdin })
  .on('line', () => {
    const now = performance.now();
    for (const start of began.values()) longestMs = Math.max(longestMs, now - start);
    process.stdout.write(`${JSON.stringify({ ms: longestMs, errors })}\n`);
    longestMs = 0;
  })
  .on('close', () => {
    isEnding = true;
  });

process.stdout.write('ready\n');
await Promise.all(process.argv.slice(2).map((path, number) => work(number, path)));
