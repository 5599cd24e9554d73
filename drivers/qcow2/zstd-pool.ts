/**
 * The threads that pack and unpack Zstandard frames: one pool for the process, as many threads as there are processors, at
 * most four, each started when there is work for it and ended after a while without any. An idle thread does not keep
 * the process alive; one at work does.
 */
import { availableParallelism } from 'node:os';
import { Worker } from 'node:worker_threads';
import type { ZstdJob, ZstdOutcome } from './zstd-worker.ts';

const MAX_THREADS = 4;
const IDLE_MS = 30_000;

interface Pending {
  readonly job: ZstdJob;
  readonly resolve: (outcome: ZstdOutcome) => void;
  readonly reject: (error: Error) => void;
}

class ZstdThread {
  readonly #worker: Worker;
  readonly #free: (thread: ZstdThread) => void;
  readonly #gone: (thread: ZstdThread) => void;
  #pending: Pending | null = null;
  #idle: NodeJS.Timeout | null = null;

  constructor(free: (thread: ZstdThread) => void, gone: (thread: ZstdThread) => void) {
    this.#free = free;
    this.#gone = gone;
    this.#worker = new Worker(new URL('./zstd-worker.js', import.meta.url));
    this.#worker.on('message', (outcome: ZstdOutcome) => this.#finish((p) => p.resolve(outcome)));
    this.#worker.once('error', (error: Error) => this.#end(error));
    this.#worker.once('exit', (code) => this.#end(new Error(`ended with code ${code}`)));
    this.#worker.unref();
  }

  run(pending: Pending): void {
    if (this.#idle !== null) clearTimeout(this.#idle);
    this.#pending = pending;
    this.#worker.ref();
    // A copy: the caller's bytes may be part of a larger buffer, which would go with them.
    const bytes = new Uint8Array(pending.job.bytes);
    this.#worker.postMessage({ ...pending.job, bytes }, [bytes.buffer]);
  }

  #finish(settle: (pending: Pending) => void): void {
    const pending = this.#pending;
    this.#pending = null;
    this.#worker.unref();
    if (pending !== null) settle(pending);
    this.#idle = setTimeout(() => void this.#worker.terminate(), IDLE_MS).unref();
    this.#free(this);
  }

  #end(error: Error): void {
    if (this.#idle !== null) clearTimeout(this.#idle);
    this.#pending?.reject(new Error(`the Zstandard thread is gone: ${error.message}`));
    this.#pending = null;
    this.#gone(this);
  }
}

class ZstdPool {
  readonly #maxThreads = Math.min(MAX_THREADS, availableParallelism());
  readonly #threads = new Set<ZstdThread>();
  readonly #free: ZstdThread[] = [];
  readonly #waiting: Pending[] = [];

  /** Errors: those of a thread that died. */
  run(job: ZstdJob): Promise<ZstdOutcome> {
    return new Promise((resolve, reject) => {
      this.#waiting.push({ job, resolve, reject });
      this.#next();
    });
  }

  #next(): void {
    if (this.#waiting.length === 0) return;
    const thread = this.#free.pop() ?? this.#start();
    if (thread === null) return;
    const pending = this.#waiting.shift();
    if (pending !== undefined) thread.run(pending);
  }

  #start(): ZstdThread | null {
    if (this.#threads.size >= this.#maxThreads) return null;
    const thread = new ZstdThread(
      (free) => {
        this.#free.push(free);
        this.#next();
      },
      (gone) => {
        this.#threads.delete(gone);
        if (this.#free.includes(gone)) this.#free.splice(this.#free.indexOf(gone), 1);
        this.#next();
      },
    );
    this.#threads.add(thread);
    return thread;
  }
}

export const zstdPool = new ZstdPool();
