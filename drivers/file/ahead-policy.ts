/**
 * Whether, and how far past its end, space is taken ahead for a file that a writer makes longer. Numbers alone: no I/O.
 *
 * Bytes, from the file's start. Only growth that leaves no holes counts: a guest that writes a page into each new cluster would
 * have sixteen times the space taken that it needs.
 */

const MIB = 1 << 20;
/** A file that grew by less since it was opened has nothing ahead. */
const MIN_GROWN_BYTES = 8 * MIB;
/** What is ahead ends with the step that reaches MIN_AHEAD_BYTES, and is no more than this part of what the file grew by or of what is free. */
const GROWN_SHARE = 1 / 8;
const FREE_SHARE = 1 / 16;
/** Growth is looked at in pieces of at least this. */
const WINDOW_BYTES = MIB;
const DENSE_SHARE = 7 / 8;
/** So much is ahead at least, where it may be. */
const MIN_AHEAD_BYTES = MIB;
/** Calls that were quicker become longer, and those that were slower as short as they can be. */
const QUICK_MS = 0.15;
const SLOW_MS = 0.6;
const BLOCK_BYTES = 4096;

/** How much one call takes. */
export interface StepRange {
  readonly minBytes: number;
  readonly maxBytes: number;
}

/** Of calls by another thread, which cost two wake-ups. */
export const LONG_STEPS: StepRange = { minBytes: MIB, maxBytes: 4 * MIB };
/** Of calls between two requests: on tmpfs, where each page is made, one takes some 15 us. */
export const SHORT_STEPS: StepRange = { minBytes: MIB / 16, maxBytes: MIB / 16 };

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
  readonly #steps: StepRange;
  #stepBytes: number;
  /** Taken up to here; less than the file's length: nothing. */
  #takenTo = 0;

  /** `lengthBytes`: of the file as it is opened. */
  constructor(lengthBytes: number, steps: StepRange) {
    this.#windowStart = lengthBytes;
    this.#steps = steps;
    this.#stepBytes = steps.minBytes;
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
    if (offset - lengthBytes >= Math.max(this.#stepBytes, MIN_AHEAD_BYTES)) return null;
    const share = Math.min(this.#grownBytes * GROWN_SHARE, freeBytes * FREE_SHARE);
    const most = lengthBytes + share - offset;
    const bytes = Math.min(this.#stepBytes, Math.floor(most / BLOCK_BYTES) * BLOCK_BYTES);
    // A shorter one costs the same call.
    return bytes < this.#steps.minBytes / 2 ? null : { offset, lengthBytes: bytes };
  }

  /** Without a time the next step is as long. */
  taken({ offset, lengthBytes }: Stretch, tookMs: number | null = null): void {
    this.#takenTo = offset + lengthBytes;
    if (tookMs === null) return;
    if (tookMs < QUICK_MS) this.#stepBytes = Math.min(2 * this.#stepBytes, this.#steps.maxBytes);
    else if (tookMs > SLOW_MS) this.#stepBytes = this.#steps.minBytes;
  }

  givenBack(): void {
    this.#takenTo = 0;
  }
}
