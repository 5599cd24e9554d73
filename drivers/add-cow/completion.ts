/**
 * The end that every add-cow image is on its way to: all clusters are in the image file. Then the header says so
 * (ALL_ALLOCATED, a compatible feature), after every bit is on disk: a reader that does not know the feature uses the
 * bitmap, and reads the same.
 */
import { guestOffset } from '../../src/base/units.ts';
import { writeAllAllocated } from './header-write.ts';
import type { ImageState } from './state.ts';

/** Clusters that one look passes over: an image of any size is finished in a few checkpoints, and none takes long. */
const CLUSTERS_PER_LOOK = 2 ** 28;

export class Completion {
  readonly #state: ImageState;
  /** Every cluster before it is set. */
  #firstClear = 0;
  /** The last look ended at a bit that is not set. */
  #isStuck = false;
  /** Nothing becomes complete for the moment. */
  #isHeld = false;

  constructor(state: ImageState) {
    this.#state = state;
  }

  /** Whether every cluster is in the image file. Errors: EIO. */
  async isReached(): Promise<boolean> {
    while (!(await this.#look())) if (this.#isStuck) return false;
    return true;
  }

  /** After a checkpoint: sets the feature when all bits are on disk. Errors: EIO. */
  async settle(): Promise<void> {
    const state = this.#state;
    // A resize is about to change which clusters there are.
    if (this.#isHeld || state.isAllAllocated || state.isResizing || state.lengthBytes === 0) return;
    if (!(await this.#look()) || state.isDirty) return;
    await this.#say(true);
    const text =
      'all of it is in its image file: this file and the backing file are no longer needed';
    state.request.log.info(state.request.path, text);
    state.request.mappingChanged({ start: guestOffset(0), lengthBytes: state.lengthBytes });
  }

  /** Runs what clears bits: what has become complete needs bitmap and backing file again before. Errors: EIO; those of `clear`. */
  async undone(clear: () => Promise<void>): Promise<void> {
    const state = this.#state;
    this.#isHeld = true;
    try {
      // One that is under way may be about to say that it is complete.
      await state.schedule.request();
      if (state.isAllAllocated) await this.#say(false);
      await clear();
    } finally {
      this.#isHeld = false;
      this.reset();
    }
  }

  async #say(isAllAllocated: boolean): Promise<void> {
    const state = this.#state;
    state.header = await writeAllAllocated(state.headerChanges, state.header, isAllAllocated);
    state.isAllAllocated = isAllAllocated;
  }

  /** The size has changed, or bits were cleared. */
  reset(): void {
    this.#firstClear = 0;
    this.#isStuck = false;
  }

  async #look(): Promise<boolean> {
    const { bitmap, clusters, isAllAllocated } = this.#state;
    if (isAllAllocated) return true;
    const end = Math.min(clusters, this.#firstClear + CLUSTERS_PER_LOOK);
    this.#firstClear = await bitmap.firstClear(this.#firstClear, end);
    this.#isStuck = this.#firstClear < end;
    return this.#firstClear === clusters;
  }
}
