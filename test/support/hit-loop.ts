/**
 * Program for `node --trace-gc`, which shows what a thread allocates as collections of its heap.
 *
 *     hit-loop.js worker REQUESTS FILE     a real worker serves hits on FILE (1 MiB or more) that another process sends
 *     hit-loop.js bare REQUESTS FILE       a thread does the same system calls and nothing else
 *     hit-loop.js kernel REQUESTS          the other process of the first: descriptor 3 is its end
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, openSync, readSync, writeSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { isMainThread, Worker, workerData } from 'node:worker_threads';
import { WORKER_LIMITS } from '../../mount/kernel/worker-pool.ts';
import { present } from '../../src/base/assert.ts';
import { COUNTER, sumCounter } from '../../src/translation/counters.ts';
import { createSharedTable, ONE_PAGE, READ, WRITE } from '../../src/translation/table-layout.ts';
import { TranslationTable } from '../../src/translation/translation-table.ts';
import { StandIn, startWorkers } from './worker-stand.ts';

const VIEW = 1;
const FILE_BYTES = 1 << 20;
const REQUEST_BYTES = 4096;
const KERNEL_END = 3;

const playKernel = (requests: number): void => {
  const kernel = new StandIn(KERNEL_END, 0);
  for (let i = 0; i < requests; i++) {
    const offset = (i * REQUEST_BYTES) % FILE_BYTES;
    kernel.transfer(i % 2 === 0 ? 'READ' : 'WRITE', VIEW, offset, REQUEST_BYTES);
  }
};

const serveHits = async (requests: number, path: string): Promise<void> => {
  const shared = createSharedTable({ workers: 1, slots: 4 });
  const table = new TranslationTable(shared, { reportAfterMs: 10_000, stuck: () => {} });
  const file = openSync(path, 'r+');
  table.openView(VIEW, ONE_PAGE, FILE_BYTES);
  const index = present(table.addFile(file), 'a table has room for one file');
  table.fill(VIEW, 0, [{ permissions: READ | WRITE, file: index, hostOffset: 0 }]);
  const faulted = (): void => process.exit(1);
  const stand = startWorkers({ workers: 1, table: shared, faulted });
  const args = [fileURLToPath(import.meta.url), 'kernel', String(requests)];
  const stdio = ['ignore', 'inherit', 'inherit', stand.ends[0] ?? -1] as const;
  const kernel = spawn(process.execPath, args, { stdio: [...stdio] });
  const [code] = await once(kernel, 'exit');
  process.stdout.write(`hits ${sumCounter(stand.counters, COUNTER.hits)} kernel ${code}\n`);
  await stand.close();
  closeSync(file);
};

const doBareCalls = (requests: number, path: string): void => {
  const memory = new Uint8Array(new SharedArrayBuffer(4 * REQUEST_BYTES));
  const source = openSync('/dev/zero', 'r');
  const sink = openSync('/dev/null', 'w');
  const file = openSync(path, 'r+');
  for (let i = 0; i < requests; i++) {
    const offset = (i * REQUEST_BYTES) % FILE_BYTES;
    readSync(source, memory, REQUEST_BYTES - 100, REQUEST_BYTES + 100, null);
    if (i % 2 === 0) readSync(file, memory, REQUEST_BYTES, REQUEST_BYTES, offset);
    else writeSync(file, memory, REQUEST_BYTES, REQUEST_BYTES, offset);
    writeSync(sink, memory, REQUEST_BYTES - 16, REQUEST_BYTES + 16, null);
  }
  for (const descriptor of [source, sink, file]) closeSync(descriptor);
};

const [mode = '', requests = '', path = ''] = process.argv.slice(2);
if (!isMainThread) doBareCalls(workerData.requests, workerData.path);
else if (mode === 'kernel') playKernel(Number(requests));
else if (mode === 'worker') await serveHits(Number(requests), path);
else
  new Worker(new URL(import.meta.url), {
    workerData: { requests: Number(requests), path },
    resourceLimits: WORKER_LIMITS,
  });
