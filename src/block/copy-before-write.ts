/**
 * A point in time of a node: what its guest saw when it began is copied somewhere before it is changed, block by block.
 *
 * A block is left (to be copied), in flight (being copied) or done. Whoever is about to change the guest's bytes waits until
 * every block that he touches is done (`around`); what is left there he has copied first. The data plane changes only what is
 * done: `done` is a dirty bitmap of the node that records, so that a page has write permission only when all its blocks are
 * done.
 *
 * A copy that fails makes its blocks left again. When it was made for a guest, `guestFailure` says what comes of it: the
 * write fails, or the point in time is given up and the write goes on. Nobody waits for a copy once it has ended.
 *
 * Concurrency: `begin` inside a drained section, so that no change is in flight; everything else at any time. A block is
 * copied by one at a time, and while it is in flight nobody changes it.
 */
import { assert } from '../base/assert.ts';
import type { BlockError } from '../base/block-error.ts';
import { alignDown, alignUp } from '../base/range.ts';
import type { ContentChange, Interposer } from './content-change.ts';
import { DirtyBitmap, type DirtyRange } from './dirty-bitmap.ts';
import { TrackedBitmap } from './dirty-tracking.ts';
import type { Node } from './node.ts';

/** What a guest's request has copied at once, at most: a discard of everything must not take all memory. */
const PIECE_BYTES = 1 << 20;
const PIECES_AT_ONCE = 4;

export interface CopyBeforeWriteOptions {
  readonly node: Node;
  /** A power of two; the unit of copying. */
  readonly blockBytes: number;
  /** Blocks that are to be copied, of that granularity; changed by this class alone from then on. */
  readonly left: DirtyBitmap;
  /** Copies whole blocks (at the end: what there is of the last). What it reads is as it was at the point in time. */
  readonly copy: (range: DirtyRange, by: Copier) => Promise<void>;
  /** A copy for a guest's write has failed: what the write fails with, or null to give the point in time up. */
  readonly guestFailure: (error: unknown) => BlockError | null;
  /** Blocks are done. */
  readonly progress: (lengthBytes: number) => void;
}

/** Who copies: a request of the guest, which is counted as one already, or the job. */
export type Copier = 'guest' | 'job';

interface Flight {
  readonly start: number;
  readonly end: number;
  /** Resolves when the copy has ended, whatever came of it. */
  readonly ended: Promise<void>;
}

export class CopyBeforeWrite implements Interposer {
  readonly #options: CopyBeforeWriteOptions;
  readonly #left: DirtyBitmap;
  readonly #flights = new Set<Flight>();
  #done: TrackedBitmap | null = null;
  #isOver = false;
  #end: () => void = () => undefined;
  readonly #over: Promise<void>;

  constructor(options: CopyBeforeWriteOptions) {
    const { left, blockBytes } = options;
    assert(left.granularityBytes === blockBytes, 'what is left is counted in blocks');
    this.#options = options;
    this.#left = left;
    this.#over = new Promise((resolve) => {
      this.#end = resolve;
    });
  }

  /** Resolves when it has ended: by `end`, or because it was given up. */
  get over(): Promise<void> {
    return this.#over;
  }

  get isInFlight(): boolean {
    return this.#flights.size > 0;
  }

  /** What was not copied: what is left, and what is in flight. */
  get uncopied(): DirtyBitmap {
    const all = this.#left.copy();
    for (const { start, end } of this.#flights) all.mark(start, end - start);
    return all;
  }

  /** The point in time is now. Drained. */
  async begin(): Promise<void> {
    const { node, blockBytes } = this.#options;
    const { lengthBytes } = node;
    const content = new DirtyBitmap({ lengthBytes, granularityBytes: blockBytes });
    content.markAll();
    for (const { start, lengthBytes: bytes } of this.#left.dirtyRanges())
      content.clear(start, bytes);
    this.#done = new TrackedBitmap({ name: null, content, recording: true, persistent: false });
    node.interposers.unshift(this);
    await node.dirtyBitmaps.add(this.#done);
  }

  /** Nothing is protected any more; who waits goes on. At once, and once. Copies in flight end by themselves: `settled`. */
  end(): void {
    if (this.#isOver) return;
    this.#isOver = true;
    const { node } = this.#options;
    const place = node.interposers.indexOf(this);
    if (place >= 0) node.interposers.splice(place, 1);
    if (this.#done !== null) node.dirtyBitmaps.drop(this.#done);
    this.#end();
  }

  /** Resolves when no copy is in flight any more. */
  async settled(): Promise<void> {
    while (this.#flights.size > 0) await Promise.all([...this.#flights].map((f) => f.ended));
  }

  /** Resolves when one of the copies in flight has ended. */
  async oneEnded(): Promise<void> {
    await Promise.race([...this.#flights].map((f) => f.ended));
  }

  async around({ offset, lengthBytes }: ContentChange, run: () => Promise<void>): Promise<void> {
    await this.#admitted(offset, Math.min(offset + lengthBytes, this.#left.lengthBytes));
    // What was done stays so: nothing has to be looked at again.
    await run();
  }

  /** The next stretch that is left from a block's start on; null when none is. */
  next(from: number): DirtyRange | null {
    return this.#left.nextDirty(from);
  }

  /**
   * Copies what is left of a range (whole blocks) to where the first block is not left. Errors: those of the copy; the blocks
   * are left then.
   */
  async copy(range: DirtyRange, by: Copier): Promise<void> {
    const mine = this.#take(range.start, range.start + range.lengthBytes);
    if (mine !== null) await this.#fly(mine, () => this.#options.copy(mine, by));
  }

  /** What is left of a range needs no copy: it is done, and guests change it from now on without one. */
  release(range: DirtyRange): void {
    for (let at = range.start; ; ) {
      const mine = this.#take(at, range.start + range.lengthBytes);
      if (mine === null) return;
      this.#finish(mine);
      at = mine.start + mine.lengthBytes;
    }
  }

  #isTouched(start: number, end: number): boolean {
    if (this.#left.nextDirty(start, end) !== null) return true;
    return this.#flightsIn(start, end).length > 0;
  }

  #flightsIn(start: number, end: number): Flight[] {
    return [...this.#flights].filter((f) => f.start < end && f.end > start);
  }

  async #admitted(start: number, end: number): Promise<void> {
    while (!this.#isOver && this.#isTouched(start, end)) {
      const waits = this.#flightsIn(start, end).map((f) => f.ended);
      const copies: Promise<void>[] = [];
      for (let at = start; copies.length < PIECES_AT_ONCE; ) {
        const piece = this.#piece(at, end);
        if (piece === null) break;
        copies.push(this.copy(piece, 'guest'));
        at = piece.start + piece.lengthBytes;
      }
      // A target that hangs holds nobody once the point in time has ended.
      const outcomes = Promise.allSettled(copies);
      await Promise.race([Promise.all([outcomes, ...waits]), this.#over]);
      if (this.#isOver) return;
      const failed = (await outcomes).find((o) => o.status === 'rejected');
      if (failed !== undefined) this.#failed(failed.reason);
    }
  }

  /** Whole blocks that are left and lie in a range, or reach into it. */
  #piece(from: number, end: number): DirtyRange | null {
    const found = this.#left.nextDirty(from, end);
    if (found === null) return null;
    const { blockBytes } = this.#options;
    const start = alignDown(found.start, blockBytes);
    const stop = Math.min(
      found.start + found.lengthBytes,
      start + Math.max(PIECE_BYTES, blockBytes),
    );
    const blocks = Math.min(alignUp(stop, blockBytes), this.#left.lengthBytes);
    return { start, lengthBytes: blocks - start };
  }

  // The guest's write is not at fault: only when it was asked for does it fail.
  #failed(error: unknown): void {
    const refusal = this.#options.guestFailure(error);
    if (refusal !== null) throw refusal;
    this.end();
  }

  /** The first stretch of a range that is left is in flight from now on. */
  #take(start: number, end: number): DirtyRange | null {
    const mine = this.#left.nextDirty(start, end);
    if (mine !== null) this.#left.clear(mine.start, mine.lengthBytes);
    return mine;
  }

  async #fly(range: DirtyRange, copy: () => Promise<void>): Promise<void> {
    const { start, lengthBytes } = range;
    let landed: () => void = () => undefined;
    const ended = new Promise<void>((resolve) => {
      landed = resolve;
    });
    const flight = { start, end: start + lengthBytes, ended };
    this.#flights.add(flight);
    try {
      await copy();
      this.#finish(range);
    } catch (error) {
      this.#left.mark(start, lengthBytes);
      throw error;
    } finally {
      this.#flights.delete(flight);
      landed();
    }
  }

  #finish({ start, lengthBytes }: DirtyRange): void {
    this.#done?.content.mark(start, lengthBytes);
    this.#options.progress(lengthBytes);
  }
}
