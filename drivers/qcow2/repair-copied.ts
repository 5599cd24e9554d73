/**
 * Corrects the COPIED flags of the active tables (specification: "L1 table entry", "L2 table entry", bit 63): set exactly
 * where the cluster has one reference. Compressed entries never have it.
 */
import { viewOf } from '../../src/base/byte-order.ts';
import { guestOffset, hostCluster } from '../../src/base/units.ts';
import type { ReferenceWalk } from './check-references.ts';
import { type CheckState, LANE } from './check-state.ts';

const L1_ENTRY_BYTES = 8;
const TWO_32 = 0x1_0000_0000;
const COPIED = 0x8000_0000;
const COMPRESSED = 0x4000_0000;
const HIGH_OFFSET = 0x00ff_ffff;
const LOW_OFFSET = 0xffff_fe00;

/** `clear` makes a cluster be copied before it is written, which is always safe; `set` allows writing in place. */
export type FlagDirection = 'clear' | 'set';

/**
 * Rewrites flags in one direction; how many entries it changed. A table whose cluster is also something else is left alone. No
 * flush. Errors: those of the file.
 */
export const correctCopiedFlags = async (
  state: CheckState,
  walk: ReferenceWalk,
  direction: FlagDirection,
): Promise<number> => {
  const { l1, clusterBytes, l2EntryBytes } = state.shape;
  let changed = 0;
  for (let done = 0; done < l1.lengthBytes; done += clusterBytes) {
    const place = {
      offset: l1.offset + done,
      lengthBytes: Math.min(clusterBytes, l1.lengthBytes - done),
    };
    if (referencesAt(state, place.offset) !== 1) continue;
    changed += await correctTable(
      state,
      { ...place, entryBytes: L1_ENTRY_BYTES, isL1: true },
      direction,
    );
  }
  for (const { offset, names } of walk.activeTables()) {
    if (!isUsable(state, offset) || referencesAt(state, offset) !== names) continue;
    const table = { offset, lengthBytes: clusterBytes, entryBytes: l2EntryBytes, isL1: false };
    changed += await correctTable(state, table, direction);
  }
  return changed;
};

interface FlaggedTable {
  readonly offset: number;
  readonly lengthBytes: number;
  readonly entryBytes: number;
  readonly isL1: boolean;
}

const correctTable = async (
  state: CheckState,
  table: FlaggedTable,
  direction: FlagDirection,
): Promise<number> => {
  const bytes = new Uint8Array(table.lengthBytes);
  if (!(await state.readTable(table.offset, bytes))) return 0;
  const view = viewOf(bytes);
  let changed = 0;
  for (let at = 0; at < bytes.length; at += table.entryBytes) {
    const [high, low] = [view.getUint32(at), view.getUint32(at + 4)];
    const offset = (high & HIGH_OFFSET) * TWO_32 + ((low & LOW_OFFSET) >>> 0);
    const isCompressed = !table.isL1 && (high & COMPRESSED) !== 0;
    if (!isCompressed && !isUsable(state, offset)) continue;
    const isOutside = state.shape.hasDataFile && !table.isL1;
    const wants = !isCompressed && (isOutside || referencesAt(state, offset) === 1);
    const has = (high & COPIED) !== 0;
    if (wants === has || wants !== (direction === 'set')) continue;
    view.setUint32(at, (wants ? high | COPIED : high & ~COPIED) >>> 0);
    changed++;
  }
  if (changed > 0) await state.file.write(guestOffset(table.offset), bytes);
  return changed;
};

const referencesAt = (state: CheckState, offset: number): number =>
  state.clusters.get(hostCluster(offset / state.shape.clusterBytes), LANE.references);

/** What lies past the file's end has no references, so it loses its flag as well. */
const isUsable = (state: CheckState, offset: number): boolean =>
  offset !== 0 && offset % state.shape.clusterBytes === 0;
