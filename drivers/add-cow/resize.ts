/**
 * Changing the guest's size, which is the image file's. Drained: no request runs beside it.
 *
 * Growing: what is added reads as zeros, also where the backing file is longer than the old end: those clusters get their
 * bit over nothing, and the last one of the old end is brought to the image file, durably, before the image file grows.
 * Shrinking: bits past the new end are cleared, durably, before the image file is cut. A crash in between leaves the old
 * size.
 */
import { alignUp, divideUp } from '../../src/base/range.ts';
import { bitmapBytesOf } from './bitmap.ts';
import type { Completion } from './completion.ts';
import type { ImageState } from './state.ts';
import type { Writer } from './write.ts';

/** Bits that are changed between two checkpoints: tables that are dirty stay in memory. */
const CLUSTERS_PER_STEP = 2 ** 25;

export class Resizer {
  readonly #state: ImageState;
  readonly #writer: Writer;
  readonly #completion: Completion;

  constructor(state: ImageState, writer: Writer, completion: Completion) {
    this.#state = state;
    this.#writer = writer;
    this.#completion = completion;
  }

  /** Bytes, any number. Errors: EFBIG, ENOSPC, EIO; what has failed leaves the image file as it is. */
  async resize(lengthBytes: number): Promise<void> {
    const state = this.#state;
    const old = state.lengthBytes;
    if (lengthBytes === old) return;
    state.plannedClusters = divideUp(lengthBytes, state.clusterBytes);
    try {
      // One that is under way may be about to say that all of it is in the image file.
      await state.schedule.request();
      if (lengthBytes > old) await this.#grow(old, lengthBytes);
      else await this.#shrink(lengthBytes);
    } finally {
      state.plannedClusters = null;
      this.#completion.reset();
    }
  }

  /** Sets the bits of clusters that an image which is all allocated was given by another way (the kernel's own writes). */
  async cover(oldClusters: number): Promise<void> {
    const { clusters, isAllAllocated } = this.#state;
    if (isAllAllocated && clusters > oldClusters) await this.#change(oldClusters, clusters, true);
  }

  async #grow(old: number, now: number): Promise<void> {
    const state = this.#state;
    const { clusterBytes, backingBytes, isAllAllocated, image } = state;
    const oldClusters = divideUp(old, clusterBytes);
    const nowClusters = divideUp(now, clusterBytes);
    await this.#fitFile(oldClusters);
    // Bits past the end were nobody's; they would be the new clusters'.
    const room = bitmapBytesOf(oldClusters, clusterBytes) * 8;
    await this.#change(oldClusters, Math.max(oldClusters, Math.min(room, nowClusters)), false);
    await this.#fitFile(nowClusters);
    let set = oldClusters;
    if (isAllAllocated) set = nowClusters;
    else if (backingBytes > old) {
      if (old % clusterBytes !== 0) await this.#writer.copyUp(old - 1, 1);
      set = divideUp(Math.min(now, alignUp(backingBytes, clusterBytes)), clusterBytes);
    }
    await this.#change(oldClusters, set, true);
    await state.schedule.request();
    try {
      await image.resize(now);
      await image.flush();
    } catch (error) {
      // What could not be taken back is past the end, where nobody looks.
      await this.#change(oldClusters, set, false).catch(() => undefined);
      throw error;
    }
  }

  async #shrink(now: number): Promise<void> {
    const state = this.#state;
    const { clusterBytes, clusters, bitmap, image } = state;
    const nowClusters = divideUp(now, clusterBytes);
    const room = bitmapBytesOf(nowClusters, clusterBytes) * 8;
    await this.#change(nowClusters, Math.min(room, clusters), false);
    await state.schedule.request();
    // What lies in the bitmap behind that goes with the file's end.
    bitmap.forget();
    await this.#fitFile(nowClusters);
    await image.resize(now);
    await image.flush();
  }

  /** The add-cow file ends with a bitmap of so many clusters, durably. */
  async #fitFile(clusters: number): Promise<void> {
    const { file, header, clusterBytes } = this.#state;
    const bytes = header.headerBytes + bitmapBytesOf(clusters, clusterBytes);
    if (file.lengthBytes === bytes) return;
    await file.resize(bytes);
    await file.flush();
  }

  async #change(first: number, end: number, isSet: boolean): Promise<void> {
    const { bitmap, schedule } = this.#state;
    for (let at = first; at < end; at += CLUSTERS_PER_STEP) {
      await bitmap.change(at, Math.min(CLUSTERS_PER_STEP, end - at), isSet);
      if (end - at > CLUSTERS_PER_STEP) await schedule.request();
    }
  }
}
