/**
 * Guest writes. To clusters that are in the image file they go there, side by side and without a lock. Others are brought
 * there whole: what the guest does not write of them is copied from below, up to the end of the image, and zeros where the
 * backing file has ended.
 *
 * Order: lock the clusters, write them, set their bits, journal, answer. A failure before the bits leaves the old content.
 * Guest bytes beat copied ones: they are put together before they are written, or do not touch.
 */

import { allOf, Parts } from '../../src/base/parts.ts';
import { alignDown, alignUp, isAllZero } from '../../src/base/range.ts';
import { guestOffset } from '../../src/base/units.ts';
import { type Content, HostRange, notCopied } from '../../src/block/host-range.ts';
import type { ImageState } from './state.ts';

/** Pieces up to this are put together and written at once: one system call costs more than copying them. */
const ASSEMBLE_BYTES = 256 << 10;
/** What one lock covers, and one step copies. */
const STEP_BYTES = 1 << 20;

export class Writer {
  readonly #state: ImageState;

  constructor(state: ImageState) {
    this.#state = state;
  }

  /** See `DriverInstance.write`. */
  async write(offset: number, buffer: Uint8Array): Promise<void> {
    const { image } = this.#state;
    const pieces = new Parts();
    try {
      for (let done = 0; done < buffer.length; ) {
        const at = offset + done;
        const run = await this.#state.runAt(at, buffer.length - done);
        const part = buffer.subarray(done, done + run.lengthBytes);
        pieces.add(run.isSet ? image.write(guestOffset(at), part) : this.#writeLocked(at, part));
        done += run.lengthBytes;
      }
    } finally {
      // The buffer is the caller's again only when nobody reads it any more.
      await pieces.settled();
    }
    await pieces.results();
  }

  /** Runs `change` for each run of a range that is not in the image file, in whole clusters and with their locks. */
  async whereUnset(
    range: { readonly offset: number; readonly end: number; readonly stepBytes: number },
    change: (at: number, lengthBytes: number) => Promise<void>,
  ): Promise<void> {
    const { clusterBytes, locks } = this.#state;
    const { offset, end } = range;
    const stepBytes = Math.max(clusterBytes, range.stepBytes);
    for (let at = offset; at < end; ) {
      const next = Math.min(end, alignDown(at, stepBytes) + stepBytes);
      const start = alignDown(at, clusterBytes);
      using _lock = await locks.acquire({ start, end: alignUp(next, clusterBytes) });
      while (at < next) {
        const run = await this.#state.runAt(at, next - at);
        if (!run.isSet) await change(at, run.lengthBytes);
        at += run.lengthBytes;
      }
    }
  }

  /**
   * Brings whole clusters into the image file, with these bytes at `offset` and the others from below. The caller has
   * their locks, and none is there yet. Errors: those of reading below and of the image file; nothing has changed then.
   */
  async bring(offset: number, buffer: Uint8Array): Promise<void> {
    const { clusterBytes, image, lengthBytes } = this.#state;
    const start = alignDown(offset, clusterBytes);
    const bytesEnd = offset + buffer.length;
    const end = Math.min(alignUp(bytesEnd, clusterBytes), lengthBytes);
    if (end - start === buffer.length) await image.write(guestOffset(start), buffer);
    else if (end - start <= ASSEMBLE_BYTES) {
      const whole = new Uint8Array(end - start);
      await this.#readAround(whole, offset - start, buffer.length, start);
      whole.set(buffer, offset - start);
      await image.write(guestOffset(start), whole);
    } else {
      await allOf([
        this.#copy(start, offset),
        image.write(guestOffset(offset), buffer),
        this.#copy(bytesEnd, end),
      ]);
    }
    await this.#state.publish(start, end);
  }

  /** See `DriverInstance.populate`. */
  async populate(offset: number, lengthBytes: number, bytes: Content | null): Promise<void> {
    const { image } = this.#state;
    const range = { offset, end: offset + lengthBytes, stepBytes: STEP_BYTES };
    await this.whereUnset(range, async (at, length) => {
      if (bytes === null) await image.writeZeroes(guestOffset(at), length, { unmap: true });
      else {
        const part = bytes.subarray(at - offset, at - offset + length);
        if (!(part instanceof HostRange)) await image.write(guestOffset(at), part);
        else if (!(await image.copyIn(guestOffset(at), part, 'write'))) throw notCopied();
      }
      await this.#state.publish(at, at + length, { isCopy: true });
    });
  }

  /** Brings the clusters of a range into the image file as they are. */
  async copyUp(offset: number, lengthBytes: number): Promise<void> {
    const { clusterBytes, image, lengthBytes: imageEnd } = this.#state;
    const start = alignDown(offset, clusterBytes);
    const end = Math.min(alignUp(offset + lengthBytes, clusterBytes), imageEnd);
    const range = { offset: start, end, stepBytes: STEP_BYTES };
    await this.whereUnset(range, async (at, length) => {
      const bytes = new Uint8Array(length);
      await this.#state.readBelow(guestOffset(at), bytes);
      if (isAllZero(bytes)) await image.writeZeroes(guestOffset(at), length, { unmap: false });
      else await image.write(guestOffset(at), bytes);
      await this.#state.publish(at, at + length);
    });
  }

  async #writeLocked(offset: number, buffer: Uint8Array): Promise<void> {
    const { clusterBytes, image, locks } = this.#state;
    using _lock = await locks.acquire({
      start: alignDown(offset, clusterBytes),
      end: alignUp(offset + buffer.length, clusterBytes),
    });
    for (let done = 0; done < buffer.length; ) {
      // Looked up again: who held the lock before may have brought it.
      const run = await this.#state.runAt(offset + done, buffer.length - done);
      const part = buffer.subarray(done, done + run.lengthBytes);
      if (run.isSet) await image.write(guestOffset(offset + done), part);
      else await this.bring(offset + done, part);
      done += run.lengthBytes;
    }
  }

  /** Fills what lies before and behind the guest's bytes. */
  async #readAround(whole: Uint8Array, from: number, length: number, start: number): Promise<void> {
    const around = [
      { at: start, bytes: whole.subarray(0, from) },
      { at: start + from + length, bytes: whole.subarray(from + length) },
    ].filter(({ bytes }) => bytes.length > 0);
    await allOf(around.map(({ at, bytes }) => this.#state.readBelow(guestOffset(at), bytes)));
  }

  async #copy(from: number, to: number): Promise<void> {
    if (to <= from) return;
    const bytes = new Uint8Array(to - from);
    await this.#state.readBelow(guestOffset(from), bytes);
    await this.#state.image.write(guestOffset(from), bytes);
  }
}
