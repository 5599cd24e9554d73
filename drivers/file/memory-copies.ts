/** Copies of ranges into one file on tmpfs, by threads that share the work (copy-task.ts). */
import { copyFileRange, type FilePlace } from '../../src/os/linux.ts';
import { CopyThreads } from './copy-threads.ts';
import { CopyTurns } from './copy-turns.ts';

/** What is shorter is done before a thread that sleeps has begun. */
const LEAST_BYTES = 1 << 20;

const threads = new CopyThreads();

export class MemoryCopies {
  readonly #turns = new CopyTurns();
  /** Where the copies end that are under way. */
  readonly #ends: number[] = [];

  /**
   * Bytes copied, from the start on: fewer than asked at times, 0 at the end of the first file. Ranges that are copied at the same
   * time do not overlap. The file may become as long as all of them need before any is copied. Errors: those of copy_file_range(2), then
   * with any part of it copied.
   */
  async copy(from: FilePlace, to: FilePlace, lengthBytes: number): Promise<number> {
    if (lengthBytes < LEAST_BYTES) return copyFileRange(from, to, lengthBytes);
    const end = to.offset + lengthBytes;
    this.#ends.push(end);
    this.#turns.end = Math.max(...this.#ends);
    try {
      const copied = threads.run({ from, to, lengthBytes, turns: this.#turns.shared });
      return await (copied ?? copyFileRange(from, to, lengthBytes));
    } finally {
      this.#ends.splice(this.#ends.indexOf(end), 1);
      this.#turns.end = Math.max(0, ...this.#ends);
    }
  }
}
