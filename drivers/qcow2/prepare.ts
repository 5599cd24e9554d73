/**
 * What has to be before the first change of an opened image: no two tables in one place, autoclear bits that say nothing untrue any
 * more, the restart journal's mark among them, and dirty bitmaps that record marked in use. Once; a failure is met again by the next
 * who asks. And what goes of it when the image is closed.
 */
import { viewOf } from '../../src/base/byte-order.ts';
import { isMark, markOf } from './journal-mark.ts';
import { AUTOCLEAR, HEADER } from './layout.ts';
import type { PersistentBitmaps } from './persistent-bitmaps.ts';
import { refuseConflict } from './saved-metadata.ts';
import type { ImageState } from './state.ts';

export class Preparation {
  readonly #state: ImageState;
  readonly #bitmaps: PersistentBitmaps;
  readonly #allowInPlace: () => void;
  #prepared: Promise<void> | null = null;
  #isDone = false;
  #autoclear: Promise<void> | null = null;
  /** The upper autoclear bits on disk. */
  #autoclearHigh: number;

  /** `allowInPlace`: from then on others write beside the driver. */
  constructor(state: ImageState, bitmaps: PersistentBitmaps, allowInPlace: () => void) {
    this.#state = state;
    this.#bitmaps = bitmaps;
    this.#allowInPlace = allowInPlace;
    this.#autoclearHigh = state.header.autoclearHigh;
  }

  get isDone(): boolean {
    return this.#isDone;
  }

  /** All of it is on disk when it returns. Errors: kind invalid-image, which marks the image; EIO, ENOSPC. */
  ensure(): Promise<void> {
    this.#prepared ??= this.#prepare().catch((error: unknown) => {
      this.#prepared = null;
      throw error;
    });
    return this.#prepared;
  }

  async #prepare(): Promise<void> {
    refuseConflict(this.#state);
    await this.setAutoclear();
    await this.#bitmaps.holdRecording();
    this.#allowInPlace();
    this.#isDone = true;
  }

  /**
   * Autoclear bits say that something beside the mapping is up to date; from the first write on it may not be. Bitmaps are
   * kept so. The journal's mark is there when it returns, the others are cleared durably. Errors: EIO; some may be cleared then, which says
   * nothing untrue: they are not put back.
   */
  setAutoclear(): Promise<void> {
    this.#autoclear ??= this.#writeAutoclear().catch((error: unknown) => {
      this.#autoclear = null;
      throw error;
    });
    return this.#autoclear;
  }

  async #writeAutoclear(): Promise<void> {
    const { header, headerChanges, isDataFileRaw, request } = this.#state;
    if (header.version < 3) return;
    const raw = isDataFileRaw ? AUTOCLEAR.rawDataFile : 0;
    const low = raw | (this.#bitmaps.isValid ? AUTOCLEAR.bitmaps : 0);
    const before = this.#autoclearHigh;
    const high = markOf(request.journal);
    const field = new Uint8Array(8);
    viewOf(field).setUint32(0, high);
    viewOf(field).setUint32(4, low);
    if (header.autoclear !== low || (before !== 0 && !isMark(before)))
      await headerChanges.set(HEADER.autoclear, field);
    else if (before !== high) await headerChanges.note(HEADER.autoclear, field.subarray(0, 4));
    this.#autoclearHigh = high;
  }

  /** The journal is empty and closed: nothing belongs to its mark any more, or to that of another boot. Errors: EIO. */
  async takeMarkAway(): Promise<void> {
    const { headerChanges, request } = this.#state;
    if (request.journal === null || !isMark(this.#autoclearHigh)) return;
    this.#autoclearHigh = 0;
    await headerChanges.note(HEADER.autoclear, new Uint8Array(4));
  }
}
