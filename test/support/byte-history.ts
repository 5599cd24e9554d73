/**
 * A disk under concurrent requests, byte by byte: what a read may give. Each byte may hold what was written by a write that
 * had begun, unless a later write, one that began after it had ended, was done before the read began.
 */

export interface TimedWrite {
  readonly id: number;
  readonly start: number;
  readonly end: number;
  readonly isZero: boolean;
  readonly begun: number;
  /** Infinity while it is under way. */
  ended: number;
}

/** Position and write are both in it, so that a byte in the wrong place is another value. Never 0. */
const byteOf = (write: TimedWrite, at: number): number =>
  write.isZero ? 0 : 1 + ((write.id * 37 + at) % 255);

export class ByteHistory {
  /** Content before everything that is in `#writes`. */
  #base: Uint8Array;
  #writes: TimedWrite[] = [];
  #clock = 0;
  #ids = 0;

  constructor(base: Uint8Array) {
    this.#base = base;
  }

  get content(): Uint8Array {
    return this.#base;
  }

  /** A moment, later than every one before. */
  now(): number {
    return this.#clock++;
  }

  begin(start: number, lengthBytes: number, isZero: boolean): TimedWrite {
    const id = this.#ids++;
    const begun = this.now();
    const ended = Number.POSITIVE_INFINITY;
    const write = { id, start, end: start + lengthBytes, isZero, begun, ended };
    this.#writes.push(write);
    return write;
  }

  bytesOf(write: TimedWrite): Uint8Array {
    return Uint8Array.from({ length: write.end - write.start }, (_, i) =>
      byteOf(write, write.start + i),
    );
  }

  /** What is wrong in what a read gave that ran from one moment to another; null when all is well. */
  firstWrong(start: number, found: Uint8Array, begun: number, ended: number): string | null {
    const end = start + found.length;
    const writes = this.#writes.filter((w) => w.start < end && w.end > start && w.begun < ended);
    const edges = new Set([start, end]);
    for (const w of writes)
      for (const at of [w.start, w.end]) if (at > start && at < end) edges.add(at);
    const sorted = [...edges].sort((a, b) => a - b);
    for (const [i, from] of sorted.entries()) {
      const to = sorted[i + 1];
      if (to === undefined) return null;
      const over = writes.filter((w) => w.start <= from && w.end >= to);
      const done = over.filter((w) => w.ended < begun);
      const lastBegun = Math.max(-1, ...done.map((w) => w.begun));
      const allowed = over.filter((w) => w.ended > lastBegun);
      for (let at = from; at < to; at++) {
        const value = found[at - start];
        const isBase = done.length === 0 && value === this.#base[at];
        if (isBase || allowed.some((w) => byteOf(w, at) === value)) continue;
        const names = allowed.map((w) => `${byteOf(w, at)} of write ${w.id}`);
        if (done.length === 0) names.push(`${this.#base[at]} from before`);
        return `byte ${at} is ${value}, may be ${names.join(', ')}`;
      }
    }
    return null;
  }

  /** Nothing is under way, and this is the content now: all before is forgotten. */
  settle(content: Uint8Array): void {
    this.#base = content;
    this.#writes = [];
  }
}
