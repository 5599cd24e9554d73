/**
 * What the threads that copy into one file on tmpfs share: whose turn it is to use a call that holds the file's lock, and how long
 * the file is to become.
 */
const [TAKEN_AT, END_AT] = [0, 1];
const BYTES = 16;
/** A turn is a copy of 1 MiB: half a millisecond on an idle machine. */
const MOST_MS = 1000;

/** Of one file, in each of its threads. What it says is for speed: nothing goes wrong when two have the turn. */
export class CopyTurns {
  readonly shared: SharedArrayBuffer;
  readonly #words: Int32Array;
  readonly #longs: BigInt64Array;

  /** Without `shared`, of a file that no thread copies into yet. */
  constructor(shared: SharedArrayBuffer = new SharedArrayBuffer(BYTES)) {
    this.shared = shared;
    this.#words = new Int32Array(shared);
    this.#longs = new BigInt64Array(shared);
  }

  /** Bytes of the file when all copies are made that are under way. */
  get end(): number {
    return Number(Atomics.load(this.#longs, END_AT));
  }

  /** By the main thread alone. */
  set end(bytes: number) {
    Atomics.store(this.#longs, END_AT, BigInt(bytes));
  }

  /** False: another thread has it. */
  tryTake(): boolean {
    return Atomics.compareExchange(this.#words, TAKEN_AT, 0, 1) === 0;
  }

  /**
   * Waits until it may be free, by a thread other than the main one. False: for so long that who has it hangs, or is gone. Then it
   * is as good as taken: it spares threads a wait for the file's lock, and protects nothing.
   */
  awaitFree(): boolean {
    return Atomics.wait(this.#words, TAKEN_AT, 1, MOST_MS) !== 'timed-out';
  }

  /** Also by who has waited for too long: then it is the one that hangs that loses it. */
  giveBack(): void {
    Atomics.store(this.#words, TAKEN_AT, 0);
    Atomics.notify(this.#words, TAKEN_AT, 1);
  }
}
