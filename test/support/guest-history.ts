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

export class GuestHistory {
  readonly writes: GuestWrite[] = [];
  readonly flushes: GuestFlush[] = [];
  readonly #start: Uint8Array;

  constructor(start: Uint8Array) {
    this.#start = start;
  }

  /** The content when everything so far was done. */
  get content(): Uint8Array {
    const content = Uint8Array.from(this.#start);
    for (const w of this.writes) content.set(w.bytes, w.offset);
    return content;
  }

  /** The first byte that a cut after `events` events may not have left so; null when all is well. */
  firstWrong(found: Uint8Array, events: number): string | null {
    const synced = this.flushes.filter((f) => f.answered <= events);
    const isSynced = (w: GuestWrite): boolean => synced.some((f) => w.answered <= f.begun);
    const durable = Uint8Array.from(this.#start);
    const recent: GuestWrite[] = [];
    for (const w of this.writes) {
      if (isSynced(w)) durable.set(w.bytes, w.offset);
      else if (w.begun < events) recent.push(w);
    }
    for (let at = 0; at < found.length; at++) {
      if (found[at] === durable[at]) continue;
      const isRecent = recent.some(
        (w) =>
          at >= w.offset && at < w.offset + w.bytes.length && w.bytes[at - w.offset] === found[at],
      );
      if (!isRecent)
        return `byte ${at} is ${found[at]}, synced as ${durable[at]} and not written since`;
    }
    return null;
  }
}
