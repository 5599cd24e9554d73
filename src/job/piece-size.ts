/**
 * How much a copy from a server asks for at once: from what is quickly there, more, so that the way there and back counts less;
 * from what is slow, less, so that a guest's read that waits behind copies does not wait long.
 */

export const LEAST_PIECE_BYTES = 1 << 20;
export const MOST_PIECE_BYTES = 4 << 20;
const QUICK_MS = 150;
const SLOW_MS = 600;

export class PieceSize {
  #bytes = LEAST_PIECE_BYTES;

  get bytes(): number {
    return this.#bytes;
  }

  /** A piece of this size was there after so long. */
  took(lengthBytes: number, ms: number): void {
    // Those that were asked for before the last change say nothing of it.
    if (lengthBytes !== this.#bytes) return;
    if (ms < QUICK_MS) this.#bytes = Math.min(MOST_PIECE_BYTES, 2 * lengthBytes);
    if (ms > SLOW_MS) this.#bytes = Math.max(LEAST_PIECE_BYTES, lengthBytes / 2);
  }
}
