/**
 * COPIED flags of all active tables at once (specification: "L1 table entry", "L2 table entry", bit 63). Only while no
 * request runs; tables are written where they lie, without a sync, and forgotten in memory.
 */
import { viewOf } from '../../src/base/byte-order.ts';
import { guestOffset, hostCluster } from '../../src/base/units.ts';
import { COPIED_HIGH, entryOffset, isCompressed, isCopied } from './entry.ts';
import { ENTRY_BYTES } from './layout.ts';
import type { SharedRefcounts } from './shared-refcounts.ts';
import type { ImageState } from './state.ts';
import type { L1Table, NamedTable, TableWalk } from './table-walk.ts';

export class CopiedFlags {
  readonly #state: ImageState;
  readonly #walk: TableWalk;
  readonly #refcounts: SharedRefcounts;

  constructor(state: ImageState, walk: TableWalk, refcounts: SharedRefcounts) {
    this.#state = state;
    this.#walk = walk;
    this.#refcounts = refcounts;
  }

  /** Takes the flag from every entry of the tables, and from those of the L1 table in memory: all is shared now. */
  async clear(l1: L1Table): Promise<void> {
    for (const table of this.#walk.tables(l1)) {
      await this.#rewrite(table, () => false);
      setFlag(l1.view, table.l1Index * ENTRY_BYTES, false);
    }
  }

  /** Brings the flags to what the refcounts say: set where a cluster or table has one user. */
  async correct(l1: L1Table): Promise<void> {
    const { clusterBytes } = this.#state;
    const isAlone = (offset: number): boolean | Promise<boolean> => {
      const count = this.#refcounts.count(hostCluster(offset / clusterBytes));
      return typeof count === 'number' ? count === 1 : count.then((found) => found === 1);
    };
    for (const table of this.#walk.tables(l1)) {
      await this.#rewrite(table, isAlone);
      setFlag(l1.view, table.l1Index * ENTRY_BYTES, await isAlone(table.offset));
    }
  }

  async #rewrite(
    table: NamedTable,
    wants: (offset: number) => boolean | Promise<boolean>,
  ): Promise<void> {
    const bytes = await this.#walk.read(table);
    if (bytes === null) return;
    const { file, map, clusterBytes } = this.#state;
    const view = viewOf(bytes);
    let isChanged = false;
    for (let at = 0; at < bytes.length; at += map.entryBytes) {
      const [high, low] = [view.getUint32(at), view.getUint32(at + 4)];
      const offset = isCompressed(high) ? 0 : entryOffset(high, low);
      if (offset === 0 || offset % clusterBytes !== 0) continue;
      const answer = wants(offset);
      const wanted = typeof answer === 'boolean' ? answer : await answer;
      if (wanted === isCopied(high)) continue;
      setFlag(view, at, wanted);
      isChanged = true;
    }
    if (!isChanged) return;
    await file.write(guestOffset(table.offset), bytes);
    for (let at = 0; at < clusterBytes; at += map.sliceBytes) map.slices.drop(table.offset + at);
  }
}

const setFlag = (view: DataView, at: number, wanted: boolean): void => {
  const high = view.getUint32(at);
  view.setUint32(at, (wanted ? high | COPIED_HIGH : high & ~COPIED_HIGH) >>> 0);
};
