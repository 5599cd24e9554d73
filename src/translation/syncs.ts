/**
 * Syncs that workers do: the worker's side. While all that a flush of a view has left to do is to sync one host file, the view's
 * record names a descriptor for that, and a worker answers an FSYNC alone.
 *
 * The record stops naming it before a change begins that a sync of the file would not cover, so before that change is answered: who
 * then asks for an FSYNC meets a worker that loads no descriptor. The descriptor itself is guarded as host files are: it is loaded
 * inside of the hazard record, and closed after `closeView`. A sync uses no page, so nobody who gives pages up waits for it.
 *
 * A view has one sync at a time, which is what makes a failure reach everybody: the kernel tells an open file of a lost write once,
 * and whoever comes after the one who was told finds VIEW_SYNC_FAILED.
 *
 * A sync may take long. Half of the workers do one at the same time, and the last one that waits for nothing never does (patience.ts).
 */
import { Hazard } from './hazards.ts';
import { Patience } from './patience.ts';
import {
  MAX_VIEWS,
  SYNC,
  SYNC_PAGE,
  SYNCING,
  type TableLayout,
  VIEW_SYNC_BUSY,
  VIEW_SYNC_FAILED,
  VIEW_SYNC_FILE,
  viewWord,
} from './table-layout.ts';

export class Syncs {
  readonly #layout: TableLayout;
  readonly #hazard: Hazard;
  readonly #patience: Patience;
  readonly #most: number;
  /** Record of the view that is synced. */
  #record = 0;

  constructor(layout: TableLayout, worker: number) {
    this.#layout = layout;
    this.#hazard = new Hazard(layout, worker);
    this.#patience = new Patience(layout);
    this.#most = Math.floor(layout.workers / 2);
  }

  /** The descriptor to sync, until `end`; -1: the control plane has to, and nothing is held. */
  begin(view: number): number {
    if (view >= MAX_VIEWS) return -1;
    const { words } = this.#layout;
    this.#record = viewWord(this.#layout, view);
    // Most that is not to be synced here is seen without a store.
    if (Atomics.load(words, this.#record + VIEW_SYNC_FILE) === 0) return -1;
    if (!this.#mayWait()) return -1;
    this.#hazard.publish(view, SYNC_PAGE, SYNC_PAGE, SYNC);
    this.#hazard.enter();
    if (Atomics.exchange(words, this.#record + VIEW_SYNC_BUSY, 1) === 0) {
      const failed = Atomics.load(words, this.#record + VIEW_SYNC_FAILED) !== 0;
      // Looked at again: what was read before `enter` protects nothing.
      const file = Atomics.load(words, this.#record + VIEW_SYNC_FILE) - 1;
      if (!failed && file >= 0) return file;
      Atomics.store(words, this.#record + VIEW_SYNC_BUSY, 0);
    }
    this.#leave();
    return -1;
  }

  /** `errno`: why the sync has failed, 0 for one that has not. Nobody syncs the view here any more after a failure. */
  end(errno: number): void {
    const { words } = this.#layout;
    if (errno !== 0) Atomics.store(words, this.#record + VIEW_SYNC_FAILED, errno);
    Atomics.store(words, this.#record + VIEW_SYNC_BUSY, 0);
    this.#leave();
  }

  #mayWait(): boolean {
    const { words } = this.#layout;
    if (Atomics.add(words, SYNCING, 1) < this.#most && this.#patience.begin()) return true;
    Atomics.sub(words, SYNCING, 1);
    return false;
  }

  #leave(): void {
    this.#hazard.leave();
    this.#patience.end();
    Atomics.sub(this.#layout.words, SYNCING, 1);
  }
}
