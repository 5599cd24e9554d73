/** Copies of ranges into one file on tmpfs, by threads that share the work (copy-task.ts). */
import { copyFileRange, type FilePlace } from '../../src/os/file-copies.ts';
import { copyThreads } from './copy-threads.ts';
import { CopyTurns } from './copy-turns.ts';

/** What is shorter is done before a thread that sleeps has begun. */
const LEAST_BYTES = 1 << 20;
/** Then a thread may be ready for the rest. */
const IN_TURN_BYTES = 4 << 20;

/** Of one file, by the main thread. */
export class MemoryCopies {
  readonly #turns = new CopyTurns();
  /** Where the copies end that are under way. */
  readonly #ends: number[] = [];
  /** A copy has succeeded: the file systems can, and threads are worth their beginning. */
  #works = false;
  /** What one of libuv's threads copies; never rejects. */
  #inTurn: Promise<void> | null = null;

  /**
   * Bytes copied, from the start on: fewer than asked at times, 0 at the end of the first file. Ranges that are copied at the same
   * time do not overlap. The file may become as long as all of them need before any is copied. Errors: those of copy_file_range(2), then
   * with any part of it copied.
   */
  async copy(from: FilePlace, to: FilePlace, lengthBytes: number): Promise<number> {
    const end = to.offset + lengthBytes;
    this.#ends.push(end);
    this.#turns.end = Math.max(...this.#ends);
    try {
      const copied = await this.#copy(from, to, lengthBytes);
      this.#works = true;
      return copied;
    } finally {
      this.#ends.splice(this.#ends.indexOf(end), 1);
      this.#turns.end = Math.max(0, ...this.#ends);
    }
  }

  /** Null: none did. */
  async #copyByThread(from: FilePlace, to: FilePlace, lengthBytes: number): Promise<number | null> {
    if (!this.#works || lengthBytes < LEAST_BYTES) return null;
    const turns = this.#turns.shared;
    return copyThreads.run({ from, to, lengthBytes, turns }, this.#ends.length);
  }

  /** By one of our threads, or else by one of libuv, one at a time: a second one would spin on the lock of the file. */
  async #copy(from: FilePlace, to: FilePlace, lengthBytes: number): Promise<number> {
    for (;;) {
      const copied = await this.#copyByThread(from, to, lengthBytes);
      if (copied !== null) return copied;
      if (this.#inTurn === null) break;
      await this.#inTurn;
    }
    const copying = copyFileRange(from, to, Math.min(lengthBytes, IN_TURN_BYTES));
    const over = (): void => {
      this.#inTurn = null;
    };
    this.#inTurn = copying.then(over, over);
    return copying;
  }
}
