/**
 * What has to be before the first change of an opened image: no two tables in one place, autoclear bits that say nothing untrue any
 * more, and dirty bitmaps that record marked in use. Once; a failure is met again by the next who asks.
 */

import { viewOf } from '../../src/base/byte-order.ts';
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

  /** `allowInPlace`: from then on others write beside the driver. */
  constructor(state: ImageState, bitmaps: PersistentBitmaps, allowInPlace: () => void) {
    this.#state = state;
    this.#bitmaps = bitmaps;
    this.#allowInPlace = allowInPlace;
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
    await this.clearAutoclear();
    await this.#bitmaps.holdRecording();
    this.#allowInPlace();
    this.#isDone = true;
  }

  /**
   * Autoclear bits say that something beside the mapping is up to date; from the first write on it may not be. Bitmaps are
   * kept so. Durably. Errors: EIO; some may be cleared then, which says nothing untrue: they are not put back.
   */
  clearAutoclear(): Promise<void> {
    this.#autoclear ??= this.#writeAutoclear().catch((error: unknown) => {
      this.#autoclear = null;
      throw error;
    });
    return this.#autoclear;
  }

  async #writeAutoclear(): Promise<void> {
    const { header, headerChanges } = this.#state;
    const raw = this.#state.isDataFileRaw ? AUTOCLEAR.rawDataFile : 0;
    const kept = raw | (this.#bitmaps.isValid ? AUTOCLEAR.bitmaps : 0);
    if (!header.hasAutoclear || (header.autoclear === kept && header.autoclearHigh === 0)) return;
    const field = new Uint8Array(8);
    viewOf(field).setUint32(4, kept);
    await headerChanges.set(HEADER.autoclear, field);
  }
}
