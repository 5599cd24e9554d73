/**
 * Memory that the copies of one job are made through, used again and again: fresh memory for each copy costs the page faults, and
 * the collector as much as the copy itself. It keeps to the job's share of what all jobs have, and to one buffer while it is idle.
 *
 * Concurrency: a copy waits for buffers of its own job alone, never for another job's, whose target may not answer.
 */
import type { CopyMemory } from './copy-memory.ts';

export class CopyBuffers {
  readonly #memory: CopyMemory;
  readonly #bytesEach: number;
  #free: Uint8Array[] = [];
  #takenBytes = 0;
  readonly #waiting: (() => void)[] = [];

  /** `bytesEach`: what most copies need at most. */
  constructor(memory: CopyMemory, bytesEach: number) {
    this.#memory = memory;
    this.#bytesEach = bytesEach;
  }

  /** How many copies there is room for now: at least one. Those that are begun beyond it wait. */
  get copiesAtOnce(): number {
    return Math.max(1, Math.floor(this.#share / this.#bytesEach));
  }

  get #share(): number {
    return this.#memory.shareOf(this);
  }

  /**
   * The buffer, whose content is anything, belongs to the work until it is done. Waits until there is room for it beside other copies
   * of the job; alone there always is. Errors: those of the work.
   */
  async with<T>(lengthBytes: number, work: (bytes: Uint8Array) => Promise<T>): Promise<T> {
    const bytes = Math.max(lengthBytes, this.#bytesEach);
    while (this.#takenBytes > 0 && this.#takenBytes + bytes > this.#share) {
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
    }
    if (this.#takenBytes === 0) this.#memory.join(this);
    this.#takenBytes += bytes;
    const buffer = this.#take(bytes);
    try {
      return await work(buffer.subarray(0, lengthBytes));
    } finally {
      this.#giveBack(buffer);
    }
  }

  #take(bytes: number): Uint8Array {
    const kept = bytes === this.#bytesEach ? this.#free.pop() : undefined;
    return kept ?? Buffer.allocUnsafeSlow(bytes);
  }

  #giveBack(buffer: Uint8Array): void {
    this.#takenBytes -= buffer.length;
    const keptBytes = (this.#free.length + 1) * this.#bytesEach;
    const isKept = this.#takenBytes + keptBytes <= this.#share;
    if (buffer.length === this.#bytesEach && isKept) this.#free.push(buffer);
    if (this.#takenBytes === 0) {
      this.#free = this.#free.slice(0, 1);
      this.#memory.leave(this);
    }
    this.#waiting.shift()?.();
  }
}
