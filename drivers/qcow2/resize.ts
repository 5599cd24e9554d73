/**
 * Changing the virtual size. Drained: no request runs beside it.
 *
 * Growing: the tail of the last cluster and what a longer backing image would show are zeroed first, durably, then the
 * header gets the new size. Shrinking: what lies past the new end is unmapped first, durably, so that growing again
 * never brings it back. A crash in between leaves the old size.
 */
import { BlockError } from '../../src/base/block-error.ts';
import { writeU64BE } from '../../src/base/byte-order.ts';
import { alignUp, divideUp } from '../../src/base/range.ts';
import {
  guestOffset,
  type HostCluster,
  hostCluster,
  hostOffsetOfCluster,
} from '../../src/base/units.ts';
import type { Node } from '../../src/block/node.ts';
import type { Allocator } from './allocator.ts';
import { bytesPerL1Entry } from './header.ts';
import type { Change } from './journal-records.ts';
import { ENTRY_BYTES, HEADER, MAX_L1_BYTES, SECTOR_BYTES } from './layout.ts';
import { witnessOfL1 } from './owed-header.ts';
import type { ImageState } from './state.ts';
import type { Zeroes } from './zeroes.ts';

export class Resizer {
  readonly #state: ImageState;
  readonly #allocator: Allocator;
  readonly #zeroes: Zeroes;

  constructor(state: ImageState, allocator: Allocator, zeroes: Zeroes) {
    this.#state = state;
    this.#allocator = allocator;
    this.#zeroes = zeroes;
  }

  /** Bytes, rounded up to whole sectors. Errors: EFBIG for more than an L1 table of 32 MiB holds; ENOSPC, EIO. */
  async resize(lengthBytes: number): Promise<void> {
    const state = this.#state;
    const now = alignUp(lengthBytes, SECTOR_BYTES);
    const old = state.lengthBytes;
    if (now === old) return;
    if (state.snapshotTable.snapshots > 0 && state.header.version < 3) {
      throw new BlockError({
        kind: 'unsupported',
        message:
          'has internal snapshots, whose size version 2 does not record: it cannot be resized',
        hint: 'delete them, or convert the image to version 3',
        path: state.request.path,
      });
    }
    try {
      if (now > old) await this.#prepareGrowth(old, now);
      else {
        const { clusterBytes } = state;
        await this.#zeroes.forget(alignUp(now, clusterBytes), alignUp(old, clusterBytes));
      }
      // What is added reads as zeros whoever looks at it; what is cut off a guest goes on writing to when this fails.
      const options = { lengthBytes: 8, isHarmless: now > old };
      await state.schedule.request();
      await state.writeHeaderDurably(HEADER.size, (view) => writeU64BE(view, 0, now), options);
    } catch (error) {
      // Until the header says so, what a guest wrote past the old end would be gone with this opening.
      state.lengthBytes = old;
      throw error;
    }
    state.lengthBytes = now;
    if (now < old) await state.dataFile?.resize(now);
  }

  async #prepareGrowth(old: number, now: number): Promise<void> {
    const state = this.#state;
    const { clusterBytes } = state;
    const entries = divideUp(now, bytesPerL1Entry(state.header));
    if (entries * ENTRY_BYTES > MAX_L1_BYTES) {
      const message = `cannot be ${now} bytes: with clusters of ${clusterBytes} bytes its L1 table would pass 32 MiB`;
      throw new BlockError({
        kind: 'bad-request',
        errno: 'EFBIG',
        message,
        path: state.request.path,
      });
    }
    if (entries > state.map.l1Entries) await this.#enlargeL1(entries);
    await this.#growDataFile(old, now);
    state.lengthBytes = now;
    const zeroEnd = Math.min(now, Math.max(alignUp(old, clusterBytes), state.backingBytes));
    if (zeroEnd > old && !state.isFlat) await this.#zeroes.zero(old, zeroEnd - old, 'unmap');
    if (state.isDataFileRaw) await this.#zeroes.mapInPlace(old, now);
  }

  /** To the end that guests see, and zeros from the old one on whatever lay there. */
  async #growDataFile(old: number, now: number): Promise<void> {
    const { dataFile, isFlat } = this.#state;
    if (dataFile === null) return;
    if (isFlat) return this.#growFlatFile(dataFile, now);
    if (dataFile.lengthBytes > old) await dataFile.resize(old);
    await dataFile.resize(now);
  }

  /** What lies past the old end was written by a guest, and more of it may come at any moment: nothing is cut off. */
  async #growFlatFile(dataFile: Node, now: number): Promise<void> {
    await dataFile.driver.reloadLength?.();
    const missing = now - dataFile.lengthBytes;
    if (missing <= 0) return;
    if (missing < SECTOR_BYTES) await dataFile.allocate(guestOffset(now - 1), 1);
    else await dataFile.resize(now);
  }

  /**
   * 1. What is dirty in the old table goes to disk. 2. The larger table is written elsewhere and synced. 3. The header
   * names it, in one write, and is synced. 4. The old one is unmapped. A crash before 3 leaks the new one, after it
   * the old one. After a failure the new one is given back when a checkpoint has ended: until then the header may name it.
   */
  async #enlargeL1(entries: number): Promise<void> {
    const state = this.#state;
    const { map, clusterBytes, metadata } = state;
    const clusters = divideUp(entries * ENTRY_BYTES, clusterBytes);
    const { first, changes } = await this.#allocator.allocateContiguous(clusters);
    const old = {
      first: hostCluster(map.l1Offset / clusterBytes),
      count: divideUp(map.l1Entries * ENTRY_BYTES, clusterBytes),
    };
    try {
      await state.record(changes);
      await this.#moveL1(entries, hostOffsetOfCluster(first, clusterBytes));
    } catch (error) {
      state.unmapped.push({ first, count: clusters });
      // Whoever takes over has put the header back.
      state.offer(countedDown(first, clusters));
      throw error;
    }
    metadata.addRun(first, clusters, 'other');
    for (let i = 0; i < old.count; i++) metadata.remove(hostCluster(old.first + i));
    if (old.count > 0) state.unmapped.push(old);
  }

  /** To whole clusters, which are counted. */
  async #moveL1(entries: number, offset: number): Promise<void> {
    const state = this.#state;
    const { map, clusterBytes, file } = state;
    await state.schedule.request();
    const bytes = map.enlargedL1(entries);
    const padded = new Uint8Array(alignUp(bytes.length, clusterBytes));
    padded.set(bytes);
    await file.write(guestOffset(offset), padded);
    await file.flush();
    await state.writeHeaderDurably(
      HEADER.l1Size,
      (view) => {
        view.setUint32(0, entries);
        view.setUint32(4, Math.floor(offset / 2 ** 32));
        view.setUint32(8, offset >>> 0);
      },
      { lengthBytes: 12, witness: () => witnessOfL1(bytes) },
    );
    map.moveL1(offset, bytes);
  }
}

const countedDown = (first: HostCluster, count: number): readonly Change[] =>
  Array.from({ length: count }, (_, i) => {
    return { kind: 'refcount', cluster: first + i, old: 1, now: 0 };
  });
