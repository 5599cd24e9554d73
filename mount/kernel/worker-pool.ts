/** Starts the workers and waits for their end. */
import { Worker } from 'node:worker_threads';
import type { SharedSlots } from '../../src/translation/slots.ts';
import type { SharedTable } from '../../src/translation/table-layout.ts';

/** What a worker is started with. */
export interface WorkerSetup {
  readonly worker: number;
  /** How many there are. */
  readonly workers: number;
  readonly descriptor: number;
  readonly doorbell: number;
  readonly slots: SharedSlots;
  /** 8 bytes of its own. */
  readonly spliceOffset: SharedArrayBuffer;
  readonly counters: SharedArrayBuffer;
  /** See request-watch.ts. */
  readonly watch: SharedArrayBuffer;
  /** Null: latencies are not kept. */
  readonly latencies: SharedArrayBuffer | null;
  /** Null: every request faults. */
  readonly table: SharedTable | null;
}

/** A worker is a loop over shared memory: it needs no heap to speak of. */
export const WORKER_LIMITS = { maxOldGenerationSizeMb: 32, maxYoungGenerationSizeMb: 4 } as const;

/**
 * Resolves when every worker has met the end of the mount; rejects when one has died of an error, which leaves the
 * mount without it.
 */
export const runWorkers = (setups: readonly WorkerSetup[]): Promise<void> =>
  Promise.all(setups.map(runWorker)).then(() => undefined);

const runWorker = (setup: WorkerSetup): Promise<void> =>
  new Promise((resolve, reject) => {
    const thread = new Worker(new URL('./worker.js', import.meta.url), {
      workerData: setup,
      // Its pipe is not opened through node:fs; with tracking, node would warn of closing it.
      trackUnmanagedFds: false,
      resourceLimits: WORKER_LIMITS,
    });
    thread.once('error', reject);
    thread.once('exit', (code) => {
      if (code === 0) resolve();
      else reject(new Error(`worker ${setup.worker} ended with code ${code}`));
    });
  });
