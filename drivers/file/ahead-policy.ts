/**
 * Whether, and how far past its end, space is taken ahead for a file that a writer makes longer. Numbers alone: no I/O.
 *
 * Bytes, from the file's start. Only growth that leaves no holes counts: a guest that writes a page into each new cluster would
 * have sixteen times the space taken that it needs.
 */

const MIB = 1 << 20;
/** A file that grew by less since it was opened has nothing ahead. */
const MIN_GROWN_BYTES = 8 * MIB;
/** No more ahead than two steps, than this part of what it grew by, and than this part of what its file system has free. */
const GROWN_SHARE = 1 / 8;
const FREE_SHARE = 1 / 16;
/** Growth is looked at in pieces of at least this. */
const WINDOW_BYTES = MIB;
const DENSE_SHARE = 7 / 8;
/** One call: on tmpfs it holds the file's lock for 0.3 ms, about as long as a guest takes to bring the next MiB. */
const MIN_STEP_BYTES = MIB;
const MAX_STEP_BYTES = 4 * MIB;
/** Calls that were quicker become longer, and those that were slower as short as they can be. */
const QUICK_MS = 0.15;
const SLOW_MS = 0.6;
const BLOCK_BYTES = 4096;

export interface Stretch {
  readonly offset: number;
  readonly lengthBytes: number;
}

export class AheadPolicy {
  /** Since the opening, without holes. */
  #grownBytes = 0;
  /** Of the piece of growth that is being looked at. */
  #windowStart: number;
  #writtenInWindow = 0;
  #isDense = false;
  #stepBytes = MIN_STEP_BYTES;
  /** Taken up to here; less than the file's length: nothing. */
  #takenTo = 0;

  /** `lengthBytes`: of the file as it is opened. */
  constructor(lengthBytes: number) {
    this.#windowStart = lengthBytes;
  }

  /** A write has ended, and the file is `lengthBytes` long. */
  written(offset: number, end: number, lengthBytes: number): void {
    if (end <= this.#windowStart) return;
    this.#writtenInWindow += end - Math.max(offset, this.#windowStart);
    const grown = lengthBytes - this.#windowStart;
    if (grown < WINDOW_BYTES) return;
    this.#isDense = this.#writtenInWindow >= grown * DENSE_SHARE;
    if (this.#isDense) this.#grownBytes += grown;
    this.#windowStart = lengthBytes;
    this.#writtenInWindow = 0;
  }

  /** The file has another length, by no write. */
  resized(lengthBytes: number): void {
    this.#windowStart = lengthBytes;
    this.#writtenInWindow = 0;
    this.#isDense = false;
    this.#takenTo = 0;
  }

  /** What to take now; null for nothing. `freeBytes`: of its file system. */
  next(lengthBytes: number, freeBytes: number): Stretch | null {
    if (!this.#isDense || this.#grownBytes < MIN_GROWN_BYTES) return null;
    const offset = Math.ceil(Math.max(this.#takenTo, lengthBytes) / BLOCK_BYTES) * BLOCK_BYTES;
    if (offset - lengthBytes >= this.#stepBytes) return null;
    const share = Math.min(this.#grownBytes * GROWN_SHARE, freeBytes * FREE_SHARE);
    const most = lengthBytes + share - offset;
    const bytes = Math.min(this.#stepBytes, Math.floor(most / BLOCK_BYTES) * BLOCK_BYTES);
    // A shorter one costs the same call.
    return bytes < MIN_STEP_BYTES / 2 ? null : { offset, lengthBytes: bytes };
  }

  taken({ offset, lengthBytes }: Stretch, tookMs: number): void {
    this.#takenTo = offset + lengthBytes;
    if (tookMs < QUICK_MS) this.#stepBytes = Math.min(2 * this.#stepBytes, MAX_STEP_BYTES);
    else if (tookMs > SLOW_MS) this.#stepBytes = MIN_STEP_BYTES;
  }

  givenBack(): void {
    this.#takenTo = 0;
  }
}
