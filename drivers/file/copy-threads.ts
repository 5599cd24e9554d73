/**
 * The threads that copy into files on tmpfs: two for the process, as many as find something to do in one file. With more files at once
 * libuv's threads do the rest. They begin when there is something to copy, and end after a while without; an idle one does not keep the process alive.
 *
 * Threads of libuv would do the same calls. But each of those would come through the event loop, and often wake where another copy runs
 * while a processor is idle: that cost a fifth of the time.
 */
import { availableParallelism } from 'node:os';
import { Worker } from 'node:worker_threads';
import { BlockError } from '../../src/base/block-error.ts';
import type { CopyOutcome, CopyTask } from './copy-task.ts';

/** With one processor there is nobody to share the work with. */
const MAX_THREADS = availableParallelism() < 2 ? 0 : 2;
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
  /** `wasReady`: or somebody had ended it. */
  readonly onGone: (thread: CopyThread, wasReady: boolean) => void;
}

class CopyThread {
  readonly #worker = new Worker(new URL('./copy-worker.js', import.meta.url));
  readonly #tasks = new Map<number, Pending>();
  #state: 'begins' | 'ready' | 'ended' = 'begins';

  constructor({ onIdle, onGone }: ThreadEvents) {
    this.#worker.unref();
    this.#worker.on('message', (message: 'ready' | CopyOutcome) => {
      if (message !== 'ready') this.#finish(message);
      else if (this.#state === 'begins') this.#state = 'ready';
      if (this.#tasks.size === 0) onIdle();
    });
    // Whoever asked copies in another way.
    this.#worker.once('error', () => undefined);
    this.#worker.once('exit', () => {
      const wasReady = this.#state !== 'begins';
      this.#state = 'ended';
      for (const { resolve } of this.#tasks.values()) resolve(null);
      this.#tasks.clear();
      onGone(this, wasReady);
    });
  }

  get isReady(): boolean {
    return this.#state === 'ready';
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
    else pending?.reject(BlockError.fromWire(failure));
  }
}

/** Used by the main thread. */
export class CopyThreads {
  readonly #threads = new Set<CopyThread>();
  readonly #idleMs: number;
  #nextId = 1;
  #idle: NodeJS.Timeout | null = null;
  /** One did not get ready: none is begun again. */
  #areBroken = false;
  #copiedBytes = 0;

  constructor({ idleMs = IDLE_MS }: { readonly idleMs?: number } = {}) {
    this.#idleMs = idleMs;
  }

  /** Bytes that they have copied. This and the two that follow are for tests. */
  get copiedBytes(): number {
    return this.#copiedBytes;
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
    const copied = new Promise<number | null>((resolve, reject) => {
      thread.begin({ task: { ...copy, id: this.#nextId++ }, resolve, reject });
    });
    this.#rest();
    const bytes = await copied;
    this.#copiedBytes += bytes ?? 0;
    return bytes;
  }

  /** Has as many threads as would find something to do, as far as there may be. Never fails. */
  start(wanted: number): void {
    const count = Math.min(wanted, MAX_THREADS);
    const onIdle = (): void => this.#rest();
    const onGone = (thread: CopyThread, wasReady: boolean): void => {
      this.#threads.delete(thread);
      this.#areBroken ||= !wasReady;
      this.#rest();
    };
    while (!this.#areBroken && this.#threads.size < count) {
      try {
        this.#threads.add(new CopyThread({ onIdle, onGone }));
      } catch {
        // The process has as many threads as it may.
        this.#areBroken = true;
      }
    }
    this.#rest();
  }

  /** Has them end in a while, if nothing is asked of them before. */
  #rest(): void {
    if (this.#idle !== null) clearTimeout(this.#idle);
    this.#idle = null;
    const mayEnd = [...this.#threads].every(({ load }) => load === 0);
    if (!mayEnd || this.count === 0) return;
    this.#idle = setTimeout(() => {
      for (const thread of this.#threads) thread.end();
    }, this.#idleMs).unref();
  }
}

export const copyThreads = new CopyThreads();
