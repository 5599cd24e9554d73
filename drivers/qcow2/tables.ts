/** L2 tables that may be changed: makes one where there is none, and copies one that a snapshot shares. */
import { guestOffset, hostCluster, hostOffsetOfCluster } from '../../src/base/units.ts';
import type { CachedTable } from '../../src/block/table-cache.ts';
import type { Allocator } from './allocator.ts';
import type { EntryPlace } from './cluster-map.ts';
import { corruption } from './corruption.ts';
import { copiedEntry, entryHex } from './entry.ts';
import { ENTRY_BYTES } from './layout.ts';
import type { ImageState } from './state.ts';

export class OwnTables {
  readonly #state: ImageState;
  readonly #allocator: Allocator;
  readonly #making = new Map<number, Promise<void>>();

  constructor(state: ImageState, allocator: Allocator) {
    this.#state = state;
    this.#allocator = allocator;
  }

  /**
   * The slice of an entry, in a table that the active L1 alone uses. It may be changed in the turn of the event loop in
   * which this resolves: ask again after an await. Errors: ENOSPC, EIO.
   */
  async sliceFor(place: EntryPlace): Promise<CachedTable> {
    const { map } = this.#state;
    for (;;) {
      const table = map.tableOffset(place.l1Index);
      this.#refuseSaved(place.l1Index, table);
      if (table === 0 || !map.isTableOwned(place.l1Index)) {
        await this.#make(place.l1Index, table);
        continue;
      }
      const slice = map.slices.getAtOnce(table + place.sliceStart);
      if (slice !== undefined) return slice;
      await map.slices.get(table + place.sliceStart);
    }
  }

  /** `sliceFor`, when there is nothing to wait for; else null. Errors: EIO. */
  sliceAtOnce(place: EntryPlace): CachedTable | null {
    const { map } = this.#state;
    const table = map.tableOffset(place.l1Index);
    this.#refuseSaved(place.l1Index, table);
    if (table === 0 || !map.isTableOwned(place.l1Index)) return null;
    return map.slices.getAtOnce(table + place.sliceStart) ?? null;
  }

  /** What a snapshot keeps may be copied, when it is a table, and never be written. */
  #refuseSaved(l1Index: number, table: number): void {
    const { map, metadata, clusterBytes, request } = this.#state;
    if (!map.isTableOwned(l1Index) || !metadata.isSaved(hostCluster(table / clusterBytes))) return;
    const { high, low } = map.l1Entry(l1Index);
    const text = `L1 entry ${l1Index} is ${entryHex(high, low)}, as if no snapshot kept that table`;
    throw corruption(text, { path: request.path, offset: map.l1Offset + l1Index * ENTRY_BYTES });
  }

  #make(l1Index: number, shared: number): Promise<void> {
    const known = this.#making.get(l1Index);
    if (known !== undefined) return known;
    const making = this.#makeTable(l1Index, shared).finally(() => this.#making.delete(l1Index));
    this.#making.set(l1Index, making);
    return making;
  }

  async #makeTable(l1Index: number, shared: number): Promise<void> {
    const { map, file, clusterBytes, metadata } = this.#state;
    let content: Uint8Array | null = null;
    if (shared !== 0) {
      content = new Uint8Array(clusterBytes);
      await file.readClipped(guestOffset(shared), content);
    }
    const allocation = await this.#allocator.allocate(1);
    const offset = hostOffsetOfCluster(allocation.first, clusterBytes);
    metadata.add(allocation.first, 'table');
    map.addTable(offset, content);
    const changes = [
      ...allocation.changes,
      { kind: 'table' as const, at: offset, source: shared },
      map.setL1(l1Index, copiedEntry(offset)),
    ];
    if (shared !== 0) {
      const first = hostCluster(shared / clusterBytes);
      metadata.remove(first);
      this.#state.unmapped.push({ first, count: 1 });
    }
    await this.#state.record(changes);
  }
}
