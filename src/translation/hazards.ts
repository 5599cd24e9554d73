/**
 * Hazard records: how the control plane learns that no worker still uses a translation. Both sides.
 *
 * A worker writes which pages it is about to use, makes its sequence odd, only then loads entries, does the I/O, and
 * makes the sequence even. The control plane takes an entry away first and then waits until each worker whose sequence
 * is odd, and whose pages overlap, has moved on. All accesses are sequentially consistent, so either the worker sees
 * the entry gone, or the control plane sees the worker in use: there is no third case (test/reference/translation).
 */
import {
  HAZARD_FIRST_PAGE,
  HAZARD_KIND,
  HAZARD_LAST_PAGE,
  HAZARD_SEQUENCE,
  HAZARD_VIEW,
  hazardWord,
  SYNC,
  type TableLayout,
  WAITERS,
} from './table-layout.ts';

/** Pages of a view, both ends included. */
export interface PageRange {
  readonly view: number;
  readonly firstPage: number;
  readonly lastPage: number;
}

/** The worker's side; one instance for each worker. */
export class Hazard {
  readonly #words: Int32Array;
  readonly #at: number;

  constructor(layout: TableLayout, worker: number) {
    this.#words = layout.words;
    this.#at = hazardWord(layout, worker);
  }

  /** Step 1: says what will be used. The sequence must be even. */
  publish(view: number, firstPage: number, lastPage: number, kind: number): void {
    const at = this.#at;
    const words = this.#words;
    Atomics.store(words, at + HAZARD_VIEW, view);
    Atomics.store(words, at + HAZARD_FIRST_PAGE, firstPage);
    Atomics.store(words, at + HAZARD_LAST_PAGE, lastPage);
    Atomics.store(words, at + HAZARD_KIND, kind);
  }

  /** Step 2, before the first entry is loaded. */
  enter(): void {
    Atomics.add(this.#words, this.#at + HAZARD_SEQUENCE, 1);
  }

  /** Step 3, after the last byte of the I/O, and before a fault is handed over. */
  leave(): void {
    Atomics.add(this.#words, this.#at + HAZARD_SEQUENCE, 1);
    if (Atomics.load(this.#words, WAITERS) > 0) {
      Atomics.notify(this.#words, this.#at + HAZARD_SEQUENCE);
    }
  }
}

export interface WaitOptions {
  /** After this long, and again each time it has passed, `stuck` is called; the wait goes on. */
  readonly reportAfterMs: number;
  readonly stuck: (worker: number, waitedMs: number) => void;
}

/** The control plane's side. */
export class HazardWatch {
  readonly #layout: TableLayout;
  readonly #options: WaitOptions;

  constructor(layout: TableLayout, options: WaitOptions) {
    this.#layout = layout;
    this.#options = options;
  }

  /** Whether a worker uses some page of the range now (any page of any view when null; a sync uses none). */
  isUsing(worker: number, range: PageRange | null): boolean {
    const words = this.#layout.words;
    const at = hazardWord(this.#layout, worker);
    // The sequence is read first: what a record says means nothing while it is even, and one that is being written
    // for the next use belongs to a worker that will load its entries after this look.
    if ((Atomics.load(words, at + HAZARD_SEQUENCE) & 1) === 0) return false;
    // A record that says so was a sync's when the sequence was read, or has become one's since: nothing from before is used.
    if (range === null) return Atomics.load(words, at + HAZARD_KIND) !== SYNC;
    return (
      Atomics.load(words, at + HAZARD_VIEW) === range.view &&
      Atomics.load(words, at + HAZARD_FIRST_PAGE) <= range.lastPage &&
      Atomics.load(words, at + HAZARD_LAST_PAGE) >= range.firstPage
    );
  }

  /** Whether any worker does. Where none does, `quiesce` would resolve without waiting. */
  isUsed(range: PageRange): boolean {
    for (let worker = 0; worker < this.#layout.workers; worker++)
      if (this.isUsing(worker, range)) return true;
    return false;
  }

  /**
   * Resolves when every worker that used the range at the call has left it. Entries must have been taken away
   * before. Ends when host I/O ends; a worker stuck in a dead host file is reported, not abandoned.
   */
  async quiesce(range: PageRange | null): Promise<void> {
    const words = this.#layout.words;
    Atomics.add(words, WAITERS, 1);
    try {
      const waits: Promise<void>[] = [];
      for (let worker = 0; worker < this.#layout.workers; worker++) {
        if (this.isUsing(worker, range)) waits.push(this.#waitFor(worker));
      }
      await Promise.all(waits);
    } finally {
      Atomics.sub(words, WAITERS, 1);
    }
  }

  async #waitFor(worker: number): Promise<void> {
    const words = this.#layout.words;
    const at = hazardWord(this.#layout, worker) + HAZARD_SEQUENCE;
    const seen = Atomics.load(words, at);
    if ((seen & 1) === 0) return;
    const { reportAfterMs, stuck } = this.#options;
    for (let waitedMs = 0; Atomics.load(words, at) === seen; waitedMs += reportAfterMs) {
      if (waitedMs > 0) stuck(worker, waitedMs);
      const wait = Atomics.waitAsync(words, at, seen, reportAfterMs);
      if (wait.async) await wait.value;
    }
  }
}
