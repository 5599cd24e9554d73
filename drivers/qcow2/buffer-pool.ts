/** Buffers for copy-on-write, used again: one of 64 KiB for each write would keep the collector busy. */

/** Kept for later, at most. */
const MAX_KEPT_BYTES = 4 << 20;

export class BufferPool {
  readonly #free = new Map<number, Uint8Array[]>();
  #keptBytes = 0;

  /** Holds anything. */
  take(lengthBytes: number): Uint8Array {
    const kept = this.#free.get(lengthBytes)?.pop();
    if (kept === undefined) return Buffer.allocUnsafeSlow(lengthBytes);
    this.#keptBytes -= lengthBytes;
    return kept;
  }

  /** Nobody uses it any more. */
  giveBack(buffer: Uint8Array): void {
    if (this.#keptBytes + buffer.length > MAX_KEPT_BYTES) return;
    this.#keptBytes += buffer.length;
    const free = this.#free.get(buffer.length);
    if (free === undefined) this.#free.set(buffer.length, [buffer]);
    else free.push(buffer);
  }
}
