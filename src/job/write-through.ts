/**
 * Copy mode `write-blocking`: what a guest writes to a range that is in step with the target goes to the target, too, before
 * the guest is answered, so that the range stays in step. What is dirty already stays so and is copied later; so a
 * mirror whose guest writes faster than its target takes gets to an end.
 *
 * Lock order: a copy takes its range inside of a request of the view and needs none afterwards; a guest's write takes its
 * range before it is in flight in the node, for which copies wait.
 */
import type { BlockError } from '../base/block-error.ts';
import { toBlockError } from '../base/block-error.ts';
import { alignDown, alignUp } from '../base/range.ts';
import { guestOffset } from '../base/units.ts';
import type { ContentChange, Interposer } from '../block/content-change.ts';
import type { DirtyRange } from '../block/dirty-bitmap.ts';
import type { TrackedBitmap } from '../block/dirty-tracking.ts';
import type { Node } from '../block/node.ts';
import type { RangeLocks } from '../block/range-locks.ts';
import { lockOrAborted, orAborted } from './abort.ts';
import { BitmapFile } from './bitmap-file.ts';

export interface WriteThroughOptions {
  readonly target: Node;
  readonly bitmap: TrackedBitmap;
  /** Those that copies hold. */
  readonly locks: RangeLocks;
  readonly unmap: boolean;
  /** False: writes are only marked, because the job waits. */
  readonly isActive: () => boolean;
  /** Aborted when nobody wants the target any more: guests do not wait for it then. */
  readonly signal: AbortSignal;
  /** A write did not reach the target; its range is dirty. The guest's write has succeeded. */
  readonly failed: (error: BlockError) => void;
}

export class WriteThrough implements Interposer {
  readonly #options: WriteThroughOptions;

  constructor(options: WriteThroughOptions) {
    this.#options = options;
  }

  async around(change: ContentChange, run: () => Promise<void>): Promise<void> {
    const { bitmap, locks, signal } = this.#options;
    const { granularityBytes } = bitmap.content;
    const start = alignDown(change.offset, granularityBytes);
    const end = alignUp(change.offset + change.lengthBytes, granularityBytes);
    using _range = await lockOrAborted(locks, { start, end }, signal);
    if (!this.#options.isActive()) {
      bitmap.mark(change.offset, change.lengthBytes);
      await run();
      return;
    }
    const inStep = this.#inStep(change);
    // An engine that comes would not know how far the target is.
    bitmap.persistence?.mark(change.offset, change.lengthBytes);
    try {
      await run();
    } catch (error) {
      // How much of it was written is not known.
      bitmap.mark(change.offset, change.lengthBytes);
      throw error;
    }
    const writes = Promise.all(inStep.map((range) => this.#write(change, range)));
    await orAborted(writes, signal);
    const { persistence, content } = bitmap;
    if (signal.aborted) return;
    if (persistence instanceof BitmapFile) persistence.clear(start, end - start, content);
  }

  #inStep({ offset, lengthBytes }: ContentChange): readonly DirtyRange[] {
    const { bitmap, target } = this.#options;
    const end = offset + lengthBytes;
    // Past the end of the target there is nothing yet: it grows when the copies get there.
    const limit = Math.min(end, target.lengthBytes);
    if (limit < end) bitmap.mark(Math.max(offset, limit), end - Math.max(offset, limit));
    const ranges: DirtyRange[] = [];
    for (let at: number = offset; at < limit; ) {
      const found = bitmap.content.nextClean(at, limit);
      if (found === null) break;
      ranges.push(found);
      at = found.start + found.lengthBytes;
    }
    return ranges;
  }

  async #write({ offset, bytes }: ContentChange, range: DirtyRange): Promise<void> {
    const { target, bitmap, unmap, failed } = this.#options;
    const { start, lengthBytes } = range;
    try {
      const at = guestOffset(start);
      if (bytes === null) await target.writeZeroes(at, lengthBytes, { unmap });
      else await target.write(at, bytes.subarray(start - offset, start - offset + lengthBytes));
    } catch (error) {
      bitmap.mark(start, lengthBytes);
      failed(toBlockError(error));
    }
  }
}
