/**
 * Memory that copies are made through, used again and again: fresh memory for each copy costs the page faults, and the collector
 * as much as the copy itself.
 */
export class CopyBuffers {
  readonly #bytesEach: number;
  readonly #free: Uint8Array[] = [];

  /** `bytesEach`: what most copies need at most. There are as many buffers as copies have run at the same time. */
  constructor(bytesEach: number) {
    this.#bytesEach = bytesEach;
  }

  /** The buffer, whose content is anything, belongs to the work until it is done. Errors: those of the work. */
  async with<T>(lengthBytes: number, work: (bytes: Uint8Array) => Promise<T>): Promise<T> {
    if (lengthBytes > this.#bytesEach) return work(Buffer.allocUnsafeSlow(lengthBytes));
    const buffer = this.#free.pop() ?? Buffer.allocUnsafeSlow(this.#bytesEach);
    try {
      return await work(buffer.subarray(0, lengthBytes));
    } finally {
      this.#free.push(buffer);
    }
  }
}
