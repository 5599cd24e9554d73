/** What a guest did to a disk, and which content a power cut may leave of it: for every byte the last synced value, or one written since. */

export interface GuestWrite {
  readonly offset: number;
  readonly bytes: Uint8Array;
  /** Events of the file's log when it began, and when it was answered. */
  readonly begun: number;
  answered: number;
}

export interface GuestFlush {
  readonly begun: number;
  readonly answered: number;
}

/** Durable when it is answered. */
export interface GuestResize {
  readonly lengthBytes: number;
  readonly begun: number;
  answered: number;
}

const CHUNK_BYTES = 4096;

const isSame = (a: Uint8Array, b: Uint8Array, from: number, to: number): boolean =>
  Buffer.compare(a.subarray(from, to), b.subarray(from, to)) === 0;

const isRecent = (writes: readonly GuestWrite[], at: number, value: number | undefined): boolean =>
  writes.some(
    ({ offset, bytes }) =>
      at >= offset && at < offset + bytes.length && bytes[at - offset] === value,
  );

export class GuestHistory {
  readonly writes: GuestWrite[] = [];
  readonly flushes: GuestFlush[] = [];
  readonly resizes: GuestResize[] = [];
  readonly #start: Uint8Array;
  readonly #startBytes: number;

  /** `start`: the content, with room for the largest size; `lengthBytes`: how long the disk is at first. */
  constructor(start: Uint8Array, lengthBytes = start.length) {
    this.#start = start;
    this.#startBytes = lengthBytes;
  }

  /** The content when everything so far was done. */
  get content(): Uint8Array {
    const content = Uint8Array.from(this.#start);
    for (const w of this.writes) content.set(w.bytes, w.offset);
    return content;
  }

  /**
   * The first byte that a cut after `events` events may not have left so, or a size; null when all is well. What a change of
   * size that had begun takes away may be anything.
   */
  firstWrong(found: Uint8Array, events: number): string | null {
    const { durableBytes, changing } = this.#sizesAt(events);
    const lengths = [durableBytes, ...changing];
    if (!lengths.includes(found.length))
      return `it has ${found.length} bytes, not one of ${lengths.join(', ')}`;
    const end = Math.min(found.length, ...changing);
    const synced = this.flushes.filter((f) => f.answered <= events);
    const isSynced = (w: GuestWrite): boolean => synced.some((f) => w.answered <= f.begun);
    const durable = this.#start.slice();
    const recent: GuestWrite[] = [];
    for (const w of this.writes) {
      if (isSynced(w)) durable.set(w.bytes, w.offset);
      else if (w.begun < events) recent.push(w);
    }
    for (let start = 0; start < end; start += CHUNK_BYTES) {
      const next = Math.min(end, start + CHUNK_BYTES);
      if (isSame(found, durable, start, next)) continue;
      for (let at = start; at < next; at++) {
        if (found[at] === durable[at] || isRecent(recent, at, found[at])) continue;
        return `byte ${at} is ${found[at]}, synced as ${durable[at]} and not written since`;
      }
    }
    return null;
  }

  #sizesAt(events: number): { readonly durableBytes: number; readonly changing: number[] } {
    const done = this.resizes.filter((r) => r.answered <= events);
    const changing = this.resizes.filter((r) => r.begun < events && events < r.answered);
    return {
      durableBytes: done.at(-1)?.lengthBytes ?? this.#startBytes,
      changing: changing.map((r) => r.lengthBytes),
    };
  }
}
