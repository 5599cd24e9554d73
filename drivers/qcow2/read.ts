/** Reading: where a guest's bytes are, as far as others may know it, and the bytes themselves. */
import { type GuestOffset, guestOffset } from '../../src/base/units.ts';
import type { Mapping } from '../../src/block/driver.ts';
import type { CompressedClusters } from './compressed.ts';
import { isCompressed } from './entry.ts';
import type { EntryLookup } from './lookup.ts';
import type { ImageState } from './state.ts';

/** Encrypted clusters are where the entries say, but not as the guest sees them. */
const veiled = (m: Mapping): Mapping => {
  const { kind, lengthBytes } = m;
  switch (kind) {
    case 'data':
      return { kind: 'opaque', lengthBytes, encrypted: true };
    case 'zero':
      return { kind, lengthBytes, allocated: m.allocated };
    case 'unallocated':
      return { kind, lengthBytes };
    case 'opaque':
      return m;
  }
};

export class Reader {
  readonly #state: ImageState;
  readonly #lookup: EntryLookup;
  readonly #compressed: CompressedClusters;

  constructor(state: ImageState, lookup: EntryLookup, compressed: CompressedClusters) {
    this.#state = state;
    this.#lookup = lookup;
    this.#compressed = compressed;
  }

  /** See `DriverInstance.mapping`. */
  mapping(offset: GuestOffset, lengthBytes: number): Mapping | Promise<Mapping> {
    const found = this.#lookup.mapping(offset, lengthBytes);
    return found instanceof Promise ? found.then((m) => this.#shown(m)) : this.#shown(found);
  }

  #shown(m: Mapping): Mapping {
    if (this.#state.data.isEncrypted) return veiled(m);
    // Nobody writes beside the driver what SIGKILL may unmap: nobody would wait for it.
    const isKept = m.kind === 'data' && m.inPlace && this.#state.journaled.isBehind;
    return isKept ? { ...m, inPlace: false } : m;
  }

  /**
   * See `DriverInstance.read`. Looked up again, a piece at a time: what was opaque when the caller looked may be mapped
   * otherwise by now.
   */
  async read(offset: GuestOffset, buffer: Uint8Array): Promise<void> {
    for (let done = 0; done < buffer.length; ) {
      const at = guestOffset(offset + done);
      const m = await this.#lookup.mapping(at, buffer.length - done);
      const piece = buffer.subarray(done, done + m.lengthBytes);
      if (m.kind === 'opaque') await this.#readCompressed(at, piece);
      else if (m.kind === 'data')
        await this.#state.data.read({ guest: at, host: m.hostOffset }, piece);
      else await this.#readAbsent(m.kind, at, piece);
      done += m.lengthBytes;
    }
  }

  async #readAbsent(
    kind: 'zero' | 'unallocated',
    at: GuestOffset,
    piece: Uint8Array,
  ): Promise<void> {
    const backing = kind === 'zero' ? null : this.#state.request.backing();
    if (backing === null) piece.fill(0);
    else await backing.readClipped(at, piece);
  }

  async #readCompressed(at: GuestOffset, piece: Uint8Array): Promise<void> {
    const { map, clusterBytes } = this.#state;
    const place = map.place(at);
    const slice = await map.slices.get(map.tableOffset(place.l1Index) + place.sliceStart);
    const entry = map.entry(slice, place.index);
    if (!isCompressed(entry.high)) return this.read(at, piece);
    const cluster = await this.#compressed.read(entry);
    const inCluster = at % clusterBytes;
    piece.set(cluster.subarray(inCluster, inCluster + piece.length));
  }
}
