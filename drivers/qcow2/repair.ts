/**
 * Repair of refcounts and COPIED flags, in an order that a power cut may end anywhere.
 *
 * 1. Refcounts that are too low are raised, and COPIED flags of shared clusters cleared; flush. From here on nothing that is in
 *    use can be taken for free or be written in place.
 * 2. Refcounts that are too high are lowered; flush.
 * 3. Missing COPIED flags are set; flush. Before, such a cluster is only copied once more than needed.
 * 4. When a new check finds no corruption, the dirty and corrupt bits are cleared; flush.
 *
 * Each step depends only on the references, which no step changes: a repair after a cut begins anew.
 */
import { viewOf } from '../../src/base/byte-order.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { CheckResult } from '../../src/block/image-check.ts';
import type { Node } from '../../src/block/node.ts';
import { type CheckTargets, checkTables, countReferences } from './check.ts';
import { compareRefcounts, readRefcountTable } from './check-refcounts.ts';
import { ReferenceWalk } from './check-references.ts';
import { type CheckShape, CheckState } from './check-state.ts';
import { AUTOCLEAR, HEADER, INCOMPATIBLE } from './layout.ts';
import { correctCopiedFlags } from './repair-copied.ts';
import { areBlocksSound, correctRefcounts } from './repair-refcounts.ts';

export interface RepairRequest {
  /** Writable; no other user. */
  readonly file: Node;
  readonly shape: CheckShape;
  readonly targets: CheckTargets;
  /** `leaks`: refcounts that are too high alone, and the flags that follow from them. */
  readonly mode: 'leaks' | 'all';
  readonly version: 2 | 3;
}

/**
 * Repairs, and checks again: the totals are those of the second check, with what was mended beside them; the findings
 * those of both. An image whose refcount blocks cannot be written where they lie is left as it is. Errors: those of the file.
 */
export const repairTables = async (request: RepairRequest): Promise<CheckResult> => {
  const { file, shape, targets } = request;
  const before = await checkTables(file, shape, targets);
  if (before.checkErrors > 0) return before;
  const fixed =
    before.corruptions + before.leaks > 0 ? await correct(request) : { corruptions: 0, leaks: 0 };
  const isChanged = fixed.corruptions + fixed.leaks > 0;
  const after = isChanged ? await checkTables(file, shape, targets) : before;
  const isSound = after.corruptions === 0 && after.checkErrors === 0;
  if (request.mode === 'all' && request.version === 3 && isSound) await clearDamageBits(file);
  return { ...after, corruptionsFixed: fixed.corruptions, leaksFixed: fixed.leaks };
};

interface Fixed {
  readonly corruptions: number;
  readonly leaks: number;
}

const correct = async (request: RepairRequest): Promise<Fixed> => {
  const { file, shape, targets, mode, version } = request;
  const state = new CheckState(file, shape, await file.driver.allocatedBytes());
  const blocks = await readRefcountTable(state);
  const walk = new ReferenceWalk(state);
  const isComplete = await countReferences(state, walk, targets);
  await compareRefcounts(state, blocks);
  if (!isComplete || !areBlocksSound(state, blocks)) return { corruptions: 0, leaks: 0 };
  if (version === 3) await clearUnknownAutoclear(file);
  let corruptions = 0;
  if (mode === 'all') {
    corruptions += await correctRefcounts(state, blocks, 'raise');
    corruptions += await correctCopiedFlags(state, walk, 'clear');
    await file.flush();
  }
  const leaks = await correctRefcounts(state, blocks, 'lower');
  await file.flush();
  // Refcounts are the references now, unless some are too low and may not be raised: flags would have nothing to follow.
  if (mode === 'all' || state.refcountsTooLow === 0) {
    corruptions += await correctCopiedFlags(state, walk, 'clear');
    corruptions += await correctCopiedFlags(state, walk, 'set');
    await file.flush();
  }
  return { corruptions, leaks };
};

/** Durably, before anything is changed: what they say, and the mark of a restart journal, is not true afterwards. */
const clearUnknownAutoclear = async (file: Node): Promise<void> => {
  const field = new Uint8Array(8);
  await file.readClipped(guestOffset(HEADER.autoclear), field);
  const view = viewOf(field);
  const [high, low] = [view.getUint32(0), view.getUint32(4)];
  const kept = low & (AUTOCLEAR.bitmaps | AUTOCLEAR.rawDataFile);
  if (high === 0 && kept === low) return;
  view.setUint32(0, 0);
  view.setUint32(4, kept);
  await file.write(guestOffset(HEADER.autoclear), field);
  await file.flush();
};

/** The low word of the incompatible features, in one write, durably. */
const clearDamageBits = async (file: Node): Promise<void> => {
  const word = new Uint8Array(4);
  await file.readClipped(guestOffset(HEADER.incompatible + 4), word);
  const view = viewOf(word);
  const bits = view.getUint32(0);
  const kept = (bits & ~(INCOMPATIBLE.dirty | INCOMPATIBLE.corrupt)) >>> 0;
  if (kept === bits) return;
  await clearUnknownAutoclear(file);
  view.setUint32(0, kept);
  await file.flush();
  await file.write(guestOffset(HEADER.incompatible + 4), word);
  await file.flush();
};
