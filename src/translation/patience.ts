/**
 * How many workers wait for a host file at once. The last one never does: a few workers keep few reads in flight, and
 * while all of them wait nobody answers what needs no disk. What it may not wait for goes to the control plane, which
 * has more threads.
 */
import { BLOCKED, type TableLayout } from './table-layout.ts';

export class Patience {
  readonly #words: Int32Array;
  readonly #most: number;

  constructor(layout: TableLayout) {
    this.#words = layout.words;
    this.#most = layout.workers - 1;
  }

  /** True: this worker may wait, and calls `end` afterwards. */
  begin(): boolean {
    if (Atomics.add(this.#words, BLOCKED, 1) < this.#most) return true;
    this.end();
    return false;
  }

  end(): void {
    Atomics.sub(this.#words, BLOCKED, 1);
  }
}
