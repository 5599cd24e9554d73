/**
 * A raw external data file that others write beside the driver (`DriverInstance.flatFile`): when the tables place every
 * cluster in it, nothing that is written there changes a table, and nothing takes an entry away again while the file is raw.
 * What is written past its end makes the image larger.
 */
import { alignUp } from '../../src/base/range.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { Node } from '../../src/block/node.ts';
import { SECTOR_BYTES } from './layout.ts';
import type { EntryLookup } from './lookup.ts';
import type { ImageState } from './state.ts';

export class FlatFile {
  readonly #state: ImageState;
  readonly #lookup: EntryLookup;
  #isAllInPlace: Promise<boolean> | null = null;

  constructor(state: ImageState, lookup: EntryLookup) {
    this.#state = state;
    this.#lookup = lookup;
  }

  /** The file, or null. Guests may write in place by now, unless the image is read-only. Errors: EIO. */
  async handOut(): Promise<Node | null> {
    const { isDataFileRaw, dataFile, data, journaled } = this.#state;
    if (!isDataFileRaw || dataFile === null || data.isEncrypted) return null;
    this.#isAllInPlace ??= this.#look().catch((error: unknown) => {
      this.#isAllInPlace = null;
      throw error;
    });
    if (!(await this.#isAllInPlace) || journaled.isBehind) return null;
    this.#state.isFlat = true;
    return dataFile;
  }

  /** See `DriverInstance.reloadLength`. An earlier engine may have handed it out. */
  async reloadLength(): Promise<void> {
    const { isDataFileRaw, dataFile } = this.#state;
    if (!isDataFileRaw) return;
    this.#state.isFlat = true;
    await dataFile?.driver.reloadLength?.();
  }

  /** See `DriverInstance.grownBytes`. */
  get grownBytes(): number {
    const { isFlat, dataFile } = this.#state;
    return isFlat && dataFile !== null ? alignUp(dataFile.lengthBytes, SECTOR_BYTES) : 0;
  }

  /** Reads each table once. */
  async #look(): Promise<boolean> {
    const { lengthBytes, request } = this.#state;
    for (let at = 0; at < lengthBytes; ) {
      const m = await this.#lookup.mapping(guestOffset(at), lengthBytes - at);
      if (m.kind !== 'data' || m.hostOffset !== at) return false;
      if (!m.inPlace && !request.readOnly) return false;
      at += m.lengthBytes;
    }
    return true;
  }
}
