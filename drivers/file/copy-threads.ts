/**
 * The threads that copy into files on tmpfs: two for the process, since a third would find nothing that the two have left it. They
 * begin when there is something to copy, and end after a while without; an idle one does not keep the process alive.
 *
 * Threads of libuv would do the same calls. But each of those would come through the event loop, and often wake where another copy runs
 * while a processor is idle: that cost a fifth of the time.
 */
import { availableParallelism } from 'node:os';
import { Worker } from 'node:worker_threads';
import { notCopied } from '../../src/block/host-range.ts';
import { hostError } from '../../src/os/linux.ts';
import type { CopyOutcome, CopyTask } from './copy-task.ts';

const THREADS = 2;
/** A thread that has done one finds the next one there. */
const TASKS_PER_THREAD = 2;
const IDLE_MS = 5000;

interface Pending {
  readonly task: CopyTask;
  readonly resolve: (copiedBytes: number) => void;
  readonly reject: (error: Error) => void;
}

interface ThreadEvents {
  /** It is ready, or has done something. */
  readonly onFree: () => void;
  readonly onGone: (thread: CopyThread) => void;
}

class CopyThread {
  readonly #worker = new Worker(new URL('./copy-worker.js', import.meta.url));
  readonly #tasks = new Map<number, Pending>();
  #isReady = false;

  constructor({ onFree, onGone }: ThreadEvents) {
    this.#worker.unref();
    this.#worker.on('message', (message: 'ready' | CopyOutcome) => {
      if (message === 'ready') this.#isReady = true;
      else this.#finish(message);
      onFree();
    });
    // Whoever asked copies in another way.
    this.#worker.once('error', () => undefined);
    this.#worker.once('exit', () => {
      this.#isReady = false;
      for (const { reject } of this.#tasks.values()) reject(notCopied());
      this.#tasks.clear();
      onGone(this);
    });
  }

  get isReady(): boolean {
    return this.#isReady;
  }

  /** Tasks that it has, the one it works on included. */
  get load(): number {
    return this.#tasks.size;
  }

  begin(pending: Pending): void {
    this.#tasks.set(pending.task.id, pending);
    this.#worker.ref();
    this.#worker.postMessage(pending.task);
  }

  /** It has none to do. */
  end(): void {
    this.#isReady = false;
    void this.#worker.terminate();
  }

  #finish({ id, copiedBytes, failure }: CopyOutcome): void {
    const pending = this.#tasks.get(id);
    this.#tasks.delete(id);
    if (this.#tasks.size === 0) this.#worker.unref();
    if (failure === null) pending?.resolve(copiedBytes);
    else pending?.reject(hostError(failure.op, failure.errno));
  }
}

export class CopyThreads {
  readonly #threads = new Set<CopyThread>();
  readonly #waiting: Pending[] = [];
  readonly #idleMs: number;
  #nextId = 1;
  #idle: NodeJS.Timeout | null = null;

  constructor({ idleMs = IDLE_MS }: { readonly idleMs?: number } = {}) {
    this.#idleMs = idleMs;
  }

  /** Threads that have begun. */
  get count(): number {
    return this.#threads.size;
  }

  /**
   * Resolves to the bytes copied, fewer than asked at the end of the source, and in front of what fails. Null: no thread is ready yet,
   * or one processor is all there is. Errors: those of copy_file_range(2); of kind unsupported when the thread died.
   */
  run(copy: Omit<CopyTask, 'id'>): Promise<number> | null {
    if (availableParallelism() < THREADS) return null;
    while (this.#threads.size < THREADS) this.#start();
    if (![...this.#threads].some(({ isReady }) => isReady)) return null;
    return new Promise((resolve, reject) => {
      this.#waiting.push({ task: { ...copy, id: this.#nextId++ }, resolve, reject });
      this.#next();
    });
  }

  #next(): void {
    while (this.#waiting.length > 0) {
      const thread = this.#leastLoaded();
      if (thread === null || thread.load >= TASKS_PER_THREAD) break;
      const pending = this.#waiting.shift();
      if (pending !== undefined) thread.begin(pending);
    }
    if (this.#idle !== null) clearTimeout(this.#idle);
    this.#idle = null;
    if (this.#waiting.length === 0 && [...this.#threads].every(({ load }) => load === 0))
      this.#idle = setTimeout(() => this.#endAll(), this.#idleMs).unref();
  }

  #leastLoaded(): CopyThread | null {
    let least: CopyThread | null = null;
    for (const thread of this.#threads)
      if (thread.isReady && (least === null || thread.load < least.load)) least = thread;
    return least;
  }

  #start(): void {
    const onGone = (thread: CopyThread): void => {
      this.#threads.delete(thread);
      if (this.#threads.size > 0) this.#next();
      else for (const { reject } of this.#waiting.splice(0)) reject(notCopied());
    };
    this.#threads.add(new CopyThread({ onFree: () => this.#next(), onGone }));
  }

  #endAll(): void {
    for (const thread of this.#threads) thread.end();
  }
}
