/**
 * The threads that copy into files on tmpfs: two for the process, since a third would find nothing that the two have left it. They
 * begin when there is something to copy, and end after a while without; an idle one does not keep the process alive.
 *
 * Threads of libuv would do the same calls. But each of those would come through the event loop, and often wake where another copy runs
 * while a processor is idle: that cost a fifth of the time.
 */
import { availableParallelism } from 'node:os';
import { Worker } from 'node:worker_threads';
import { hostError } from '../../src/os/linux.ts';
import type { CopyOutcome, CopyTask } from './copy-task.ts';

const MAX_THREADS = 2;
/** A thread that has done one finds the next one there. */
const TASKS_PER_THREAD = 2;
const IDLE_MS = 5000;

interface Pending {
  readonly task: CopyTask;
  /** Null: the thread is gone. */
  readonly resolve: (copiedBytes: number | null) => void;
  readonly reject: (error: Error) => void;
}

interface ThreadEvents {
  /** It has nothing to do. */
  readonly onIdle: () => void;
  readonly onGone: (thread: CopyThread) => void;
}

class CopyThread {
  readonly #worker = new Worker(new URL('./copy-worker.js', import.meta.url));
  readonly #tasks = new Map<number, Pending>();
  #state: 'begins' | 'ready' | 'ended' = 'begins';
  #hasWorked = false;

  constructor({ onIdle, onGone }: ThreadEvents) {
    this.#worker.unref();
    this.#worker.on('message', (message: 'ready' | CopyOutcome) => {
      if (message !== 'ready') this.#finish(message);
      else if (this.#state === 'begins') this.#state = 'ready';
      this.#hasWorked = true;
      if (this.#tasks.size === 0) onIdle();
    });
    // Whoever asked copies in another way.
    this.#worker.once('error', () => undefined);
    this.#worker.once('exit', () => {
      this.#state = 'ended';
      for (const { resolve } of this.#tasks.values()) resolve(null);
      this.#tasks.clear();
      onGone(this);
    });
  }

  get isReady(): boolean {
    return this.#state === 'ready';
  }

  /** It got so far as to be ready. */
  get hasWorked(): boolean {
    return this.#hasWorked;
  }

  /** Tasks that it has, the one it works on included. */
  get load(): number {
    return this.#tasks.size;
  }

  /** All that it has are of one file: a copy that hangs holds up no others. */
  mayTake({ turns }: Omit<CopyTask, 'id'>): boolean {
    if (!this.isReady || this.load >= TASKS_PER_THREAD) return false;
    return [...this.#tasks.values()].every(({ task }) => task.turns === turns);
  }

  begin(pending: Pending): void {
    this.#worker.postMessage(pending.task);
    this.#tasks.set(pending.task.id, pending);
    this.#worker.ref();
  }

  /** It has none to do. */
  end(): void {
    this.#state = 'ended';
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
  readonly #idleMs: number;
  #nextId = 1;
  #idle: NodeJS.Timeout | null = null;
  /** One did not get ready: none is begun again. */
  #areBroken = false;

  constructor({ idleMs = IDLE_MS }: { readonly idleMs?: number } = {}) {
    this.#idleMs = idleMs;
  }

  /** Those that can take something, or are at work. */
  get readyCount(): number {
    return [...this.#threads].filter(({ isReady }) => isReady).length;
  }

  /** Threads that have begun. */
  get count(): number {
    return this.#threads.size;
  }

  /**
   * Resolves to the bytes copied, fewer than asked at the end of the source. Null: no thread does it, for now. `wanted`: how many threads
   * would find something to do. Errors: those of copy_file_range(2).
   */
  async run(copy: Omit<CopyTask, 'id'>, wanted: number): Promise<number | null> {
    this.start(wanted);
    const able = [...this.#threads].filter((thread) => thread.mayTake(copy));
    const [thread] = able.toSorted((a, b) => a.load - b.load);
    if (thread === undefined) return null;
    if (this.#idle !== null) clearTimeout(this.#idle);
    this.#idle = null;
    return new Promise((resolve, reject) => {
      thread.begin({ task: { ...copy, id: this.#nextId++ }, resolve, reject });
    });
  }

  /** Has as many threads as would find something to do, as far as there may be. Never fails. */
  start(wanted: number): void {
    const count = Math.min(wanted, MAX_THREADS);
    if (availableParallelism() < MAX_THREADS) return;
    const onIdle = (): void => this.#rest();
    const onGone = (thread: CopyThread): void => {
      this.#threads.delete(thread);
      this.#areBroken ||= !thread.hasWorked;
    };
    while (!this.#areBroken && this.#threads.size < count) {
      try {
        this.#threads.add(new CopyThread({ onIdle, onGone }));
      } catch {
        // The process has as many threads as it may.
        this.#areBroken = true;
      }
    }
  }

  #rest(): void {
    if ([...this.#threads].some(({ load }) => load > 0)) return;
    if (this.#idle !== null) clearTimeout(this.#idle);
    this.#idle = setTimeout(() => {
      for (const thread of this.#threads) thread.end();
    }, this.#idleMs).unref();
  }
}

export const copyThreads = new CopyThreads();
