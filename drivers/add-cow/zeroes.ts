/**
 * Write-zeroes and discard. A bitmap has no state "reads as zeros": what is in the image file is zeroed or punched there,
 * and keeps its bit; over a backing file, clusters get their bit over zeros or a hole; elsewhere nothing has to be done.
 */
import { alignDown, alignUp } from '../../src/base/range.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { ImageState } from './state.ts';
import type { Writer } from './write.ts';

/** `punch`: the space is given back. `unmap`: it may be. `keep`: it stays. */
export type ZeroMode = 'punch' | 'unmap' | 'keep';

/** What one lock covers: nothing of it is read or copied. */
const STEP_BYTES = 1 << 30;

export class Zeroes {
  readonly #state: ImageState;
  readonly #writer: Writer;

  constructor(state: ImageState, writer: Writer) {
    this.#state = state;
    this.#writer = writer;
  }

  /** The range reads as zeros afterwards. */
  async zero(offset: number, lengthBytes: number, mode: ZeroMode): Promise<void> {
    const end = offset + lengthBytes;
    for (let at = offset; at < end; ) {
      const run = await this.#state.runAt(at, end - at);
      if (run.isSet) await this.#zeroImage(at, run.lengthBytes, mode);
      else await this.#zeroUnset(at, run.lengthBytes, mode);
      at += run.lengthBytes;
    }
  }

  /** Gives every cluster that is not in the image file zeros there. */
  async fill(): Promise<void> {
    const range = { offset: 0, end: this.#state.lengthBytes, stepBytes: STEP_BYTES };
    await this.#writer.whereUnset(range, async (at, length) => {
      await this.#zeroImage(at, length, 'unmap');
      await this.#state.publish(at, at + length);
    });
  }

  async #zeroImage(at: number, lengthBytes: number, mode: ZeroMode): Promise<void> {
    const { image } = this.#state;
    if (mode === 'punch') await image.discard(guestOffset(at), lengthBytes);
    else await image.writeZeroes(guestOffset(at), lengthBytes, { unmap: mode === 'unmap' });
  }

  async #zeroUnset(offset: number, lengthBytes: number, mode: ZeroMode): Promise<void> {
    const { backingBytes, clusterBytes } = this.#state;
    // Past the backing's end it reads as zeros already.
    const end = Math.min(offset + lengthBytes, alignUp(backingBytes, clusterBytes));
    if (end <= offset) return;
    let zeroedTo = offset;
    await this.#writer.whereUnset({ offset, end, stepBytes: STEP_BYTES }, async (at, length) => {
      // Somebody brought what lies before it in the meantime.
      if (at > zeroedTo) await this.#zeroImage(zeroedTo, at - zeroedTo, mode);
      await this.#zeroClusters(at, at + length, mode);
      zeroedTo = at + length;
    });
    if (zeroedTo < end) await this.#zeroImage(zeroedTo, end - zeroedTo, mode);
  }

  /** None is in the image file, and their locks are held. */
  async #zeroClusters(from: number, to: number, mode: ZeroMode): Promise<void> {
    const { clusterBytes, lengthBytes: imageEnd } = this.#state;
    const first = Math.min(to, alignUp(from, clusterBytes));
    // The last cluster is whole when all that there is of it is.
    const last = Math.max(first, to === imageEnd ? to : alignDown(to, clusterBytes));
    await this.#bringZeros(from, first);
    if (first < last) {
      await this.#zeroImage(first, last - first, mode);
      await this.#state.publish(first, last);
    }
    await this.#bringZeros(last, to);
  }

  async #bringZeros(from: number, to: number): Promise<void> {
    if (from < to) await this.#writer.bring(from, new Uint8Array(to - from));
  }
}
