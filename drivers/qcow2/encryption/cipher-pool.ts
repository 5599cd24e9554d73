/**
 * Threads for the ciphers of all open images. Short stretches are done where they are: handing one over costs some 30 µs
 * and a thread's wake-up. Longer ones go to the threads in pieces, by moving their memory, not copying it.
 *
 * Threads begin when there is work for them, and stay: images are closed and opened again. An idle one keeps no process
 * alive, and no key of an image that was closed.
 */
import { availableParallelism } from 'node:os';
import { Worker } from 'node:worker_threads';
import { assert } from '../../../src/base/assert.ts';
import { BlockError } from '../../../src/base/block-error.ts';
import type { CipherAnswer, CipherMessage } from './cipher-worker.ts';
import { type CipherSpec, CRYPT_SECTOR_BYTES, SectorCipher } from './sector-cipher.ts';

/** Up to this, the caller's thread does it: about as long as handing it over takes. */
const INLINE_BYTES = 16 << 10;
const PIECE_BYTES = 128 << 10;
const MAX_THREADS = 4;

type Direction = 'encrypt' | 'decrypt';

/** The cipher of one open image. */
export class PooledCipher {
  readonly #id: number;
  readonly #spec: CipherSpec;
  readonly #inline: SectorCipher;
  #closed = false;

  constructor(spec: CipherSpec) {
    this.#spec = spec;
    this.#inline = new SectorCipher(spec);
    this.#id = pool.nextId();
  }

  /**
   * Of whole sectors, the first with number `sector`. The memory of `bytes` may be gone afterwards; the result is in the
   * returned array. Errors: EIO for a thread that died.
   */
  async run(
    direction: Direction,
    sector: number,
    bytes: Uint8Array<ArrayBuffer>,
  ): Promise<Uint8Array<ArrayBuffer>> {
    assert(!this.#closed, 'a closed image encrypts nothing');
    if (bytes.length <= INLINE_BYTES) {
      this.#inline[direction](sector, bytes);
      return bytes;
    }
    const cipher = { id: this.#id, spec: this.#spec };
    if (bytes.length <= PIECE_BYTES && bytes.length === bytes.buffer.byteLength)
      return pool.run(cipher, direction, sector, bytes.buffer);
    const pieces: Promise<void>[] = [];
    for (let at = 0; at < bytes.length; at += PIECE_BYTES) {
      const piece = bytes.slice(at, at + PIECE_BYTES);
      const done = pool.run(cipher, direction, sector + at / CRYPT_SECTOR_BYTES, piece.buffer);
      pieces.push(done.then((result) => bytes.set(result, at)));
    }
    await Promise.all(pieces);
    return bytes;
  }

  /** Nothing may be under way. */
  close(): void {
    this.#closed = true;
    pool.forget(this.#id);
  }
}

interface Job {
  readonly resolve: (bytes: Uint8Array<ArrayBuffer>) => void;
  readonly reject: (error: BlockError) => void;
}

interface Thread {
  readonly worker: Worker;
  readonly jobs: Map<number, Job>;
  /** Ciphers that it has been told. */
  readonly ciphers: Set<number>;
}

class CipherPool {
  readonly #threads = new Set<Thread>();
  #next = 1;

  nextId(): number {
    return this.#next++;
  }

  forget(id: number): void {
    for (const thread of this.#threads) {
      if (thread.ciphers.delete(id)) post(thread, { type: 'forget', cipher: id });
    }
  }

  run(
    cipher: { readonly id: number; readonly spec: CipherSpec },
    direction: Direction,
    sector: number,
    bytes: ArrayBuffer,
  ): Promise<Uint8Array<ArrayBuffer>> {
    const thread = this.#leastBusy();
    if (!thread.ciphers.has(cipher.id)) {
      thread.ciphers.add(cipher.id);
      post(thread, { type: 'cipher', cipher: cipher.id, spec: cipher.spec });
    }
    const job = this.#next++;
    return new Promise((resolve, reject) => {
      thread.jobs.set(job, { resolve, reject });
      thread.worker.ref();
      const message = { type: 'job', cipher: cipher.id, job, direction, sector, bytes } as const;
      post(thread, message, [bytes]);
    });
  }

  #leastBusy(): Thread {
    let best: Thread | null = null;
    for (const thread of this.#threads) {
      if (thread.jobs.size === 0) return thread;
      if (best === null || thread.jobs.size < best.jobs.size) best = thread;
    }
    const limit = Math.min(MAX_THREADS, availableParallelism());
    return best !== null && this.#threads.size >= limit ? best : this.#start();
  }

  #start(): Thread {
    const worker = new Worker(new URL('./cipher-worker.js', import.meta.url));
    const thread: Thread = { worker, jobs: new Map(), ciphers: new Set() };
    this.#threads.add(thread);
    worker.unref();
    worker.on('message', ({ job, bytes }: CipherAnswer) => {
      const waiting = thread.jobs.get(job);
      thread.jobs.delete(job);
      if (thread.jobs.size === 0) worker.unref();
      waiting?.resolve(new Uint8Array(bytes));
    });
    worker.on('error', (cause) => this.#lost(thread, cause));
    worker.on('exit', () => this.#lost(thread, undefined));
    return thread;
  }

  // What it was working on is lost; the next stretch starts another thread.
  #lost(thread: Thread, cause: unknown): void {
    this.#threads.delete(thread);
    const message = 'a thread that encrypts has died';
    for (const { reject } of thread.jobs.values())
      reject(new BlockError({ kind: 'io', message, cause }));
    thread.jobs.clear();
  }
}

const post = (
  { worker }: Thread,
  message: CipherMessage,
  moved: readonly ArrayBuffer[] = [],
): void => worker.postMessage(message, moved);

const pool = new CipherPool();
