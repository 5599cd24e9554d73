/**
 * The frame of one change of an image's snapshots. Drained: no request runs beside it.
 *
 * The header decides in one write whether a snapshot is there and which L1 table is active. Around it refcounts and COPIED
 * flags of many clusters change, and no order makes both right at every instant. So:
 *
 *     1  what is dirty in memory goes to the image. Version 3: the dirty bit; sync. From here to step 6 a cut, or the end of
 *        the process, leaves an image that is repaired before it is written
 *     2  new tables get their clusters, which count as leaked until step 4. The restart journal is not told: it is taken up
 *        after the repair, and would bring the leaks back
 *     3  create, apply: refcounts of all that is shared raised. Create: COPIED flags cleared. New tables written; sync
 *     4  the header, in one write; sync
 *     5  apply, delete: refcounts of what is not named any more lowered; sync. Delete: COPIED flags set; sync
 *     6  version 3: the dirty bit cleared; sync
 *
 * Version 2 has no dirty bit. In this order a cut leaves refcounts that are too high (leaks), or COPIED flags that do not
 * fit them, which `check -r all` mends; and a program that goes on without a check keeps all data: until step 4 nobody
 * else names what it writes in place, and after it a missing flag means one copy too many.
 *
 * A failure before step 4 takes everything back, and so does one of the header's write that was put back
 * (src/block/header-changes.ts): nobody has seen the new state. Where that is owed the header may say either, and what both need stays,
 * with the dirty bit. A failure after it leaves the new state, with leaks and the dirty bit. A bit that was left so is not cleared by a
 * later operation of this opening, which knows nothing of what was left: the next opening repairs.
 */
import { toBlockError } from '../../src/base/block-error.ts';
import { divideUp } from '../../src/base/range.ts';
import { guestOffset, hostCluster, hostOffsetOfCluster } from '../../src/base/units.ts';
import type { Allocation, Allocator } from './allocator.ts';
import { writeRefcountBlocks } from './checkpoint.ts';
import { writeDirtyBit } from './dirty-bit.ts';
import type { ImageState } from './state.ts';

/** The steps of one operation that differ; numbers as above. */
export interface Steps {
  /** 2: of the new tables, in bytes. */
  readonly lengths: readonly number[];
  /** 3. The new tables' clusters, null for an empty one: counted, and named by nothing yet. */
  readonly prepare: (taken: readonly (Allocation | null)[]) => Promise<void>;
  /** Takes back what `prepare` has done, all of it or a part. */
  readonly undo: () => Promise<void>;
  /** 4: the write alone, which is there or is put back; memory goes on by it when it returns. */
  readonly commit: (taken: readonly (Allocation | null)[]) => Promise<void>;
  /** 5. */
  readonly finish: () => Promise<void>;
}

export interface SnapshotChangeOptions {
  readonly state: ImageState;
  readonly allocator: Allocator;
  /** Brings everything to the image, and waits for what is being given back: nothing is dirty then, and nobody at work. */
  readonly quiet: () => Promise<void>;
}

export class SnapshotChange {
  readonly #options: SnapshotChangeOptions;
  /** An operation has left something that only a repair finds. */
  #isRepairDue = false;

  constructor(options: SnapshotChangeOptions) {
    this.#options = options;
  }

  /** Steps 1 to 6. Errors: those of the file; the image is as before unless the header's write has succeeded, or is owed. */
  async run(steps: Steps): Promise<void> {
    const { state } = this.#options;
    const taken: (Allocation | null)[] = [];
    await this.#settle();
    try {
      await this.#markDirty(true);
      await this.#allocate(steps.lengths, taken);
      await this.#settle();
      await steps.prepare(taken);
      await this.sync();
    } catch (error) {
      await this.#takeBack(steps, taken);
      throw error;
    }
    // Nothing is packed any more into a host cluster that a snapshot names, or that is free then.
    state.compressedUnmapped(hostCluster(0), hostCluster(Number.POSITIVE_INFINITY));
    await this.#commit(steps, taken);
    try {
      await steps.finish();
      await this.sync();
      await this.#clearDirty();
    } catch (error) {
      this.#leaveToRepair(error);
    }
  }

  async #commit(steps: Steps, taken: readonly (Allocation | null)[]): Promise<void> {
    const { state } = this.#options;
    try {
      await steps.commit(taken);
    } catch (error) {
      if (state.headerChanges.owed === null) await this.#takeBack(steps, taken);
      else this.#leaveToRepair(error);
      throw error;
    }
    try {
      await state.file.flush();
    } catch (error) {
      this.#leaveToRepair(error);
      throw error;
    }
  }

  /** All that is dirty is in the image, also words of the refcount table, and no checkpoint begins beside what follows. */
  async #settle(): Promise<void> {
    await this.#options.quiet();
    await this.#options.state.schedule.close();
  }

  async #takeBack(steps: Steps, taken: readonly (Allocation | null)[]): Promise<void> {
    try {
      await steps.undo();
      for (const allocation of taken)
        if (allocation !== null) await this.#options.allocator.giveBack(allocation);
      await this.sync();
      await this.#clearDirty();
    } catch (error) {
      this.#leaveToRepair(error);
    }
  }

  #leaveToRepair(error: unknown): void {
    this.#isRepairDue = true;
    const { log, path } = this.#options.state.request;
    const reason = toBlockError(error).describe();
    log.error(path, `clusters are leaked until the image is repaired: ${reason}`);
  }

  async #clearDirty(): Promise<void> {
    if (!this.#isRepairDue) await this.#markDirty(false);
  }

  async #markDirty(isDirty: boolean): Promise<void> {
    const { header, headerChanges } = this.#options.state;
    if (header.version >= 3) await writeDirtyBit(headerChanges, isDirty);
  }

  // Into `taken` one by one: what was taken before a failure is given back.
  async #allocate(lengths: readonly number[], taken: (Allocation | null)[]): Promise<void> {
    const { state, allocator } = this.#options;
    for (const lengthBytes of lengths) {
      const clusters = divideUp(lengthBytes, state.clusterBytes);
      taken.push(clusters === 0 ? null : await allocator.allocateContiguous(clusters));
    }
  }

  /** Whole clusters: nothing of what they held before is left in them. */
  async write(allocation: Allocation | null, bytes: Uint8Array): Promise<void> {
    const { file, clusterBytes } = this.#options.state;
    if (allocation === null) return;
    const whole = new Uint8Array(allocation.count * clusterBytes);
    whole.set(bytes);
    await file.write(guestOffset(hostOffsetOfCluster(allocation.first, clusterBytes)), whole);
  }

  /** What the refcounts are now, and everything that was written, is on disk. */
  async sync(): Promise<void> {
    const { state } = this.#options;
    await writeRefcountBlocks(state);
    await state.file.flush();
  }
}
