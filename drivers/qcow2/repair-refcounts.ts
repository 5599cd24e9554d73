/**
 * Brings stored refcounts to the references that a check has counted (specification: "Refcount blocks"), inside the refcount
 * blocks that the image has.
 */
import { viewOf, writeU64BE } from '../../src/base/byte-order.ts';
import { guestOffset, type HostCluster, hostCluster } from '../../src/base/units.ts';
import { type BlockPlace, isReadable, refcountReader } from './check-refcounts.ts';
import { type CheckState, LANE } from './check-state.ts';

/** `raise`: refcounts below the references. `lower`: those above, which are leaks. */
export type RefcountDirection = 'raise' | 'lower';

/**
 * Whether each refcount block can be rewritten where it lies: aligned, inside the file and named once. A block that shares its
 * cluster with anything else is never written.
 */
export const areBlocksSound = (state: CheckState, blocks: readonly BlockPlace[]): boolean =>
  blocks.every((block) => {
    if (!isReadable(block) || block.hasReservedBits) return false;
    const cluster = hostCluster(block.offset / state.shape.clusterBytes);
    if (block.offset === 0 || cluster >= state.fileClusters) return false;
    return state.clusters.get(cluster, LANE.references) === 1;
  });

/** Rewrites one kind of difference; how many refcounts it changed. No flush. Errors: those of the file. */
export const correctRefcounts = async (
  state: CheckState,
  blocks: readonly BlockPlace[],
  direction: RefcountDirection,
): Promise<number> => {
  const bytes = new Uint8Array(state.shape.clusterBytes);
  let changed = 0;
  for (const block of blocks) {
    const first = hostCluster(block.index * state.blockEntries);
    if (first >= state.comparedClusters) continue;
    if (!(await state.readTable(block.offset, bytes))) bytes.fill(0);
    const count = correctBlock(state, bytes, first, direction);
    if (count > 0) await state.file.write(guestOffset(block.offset), bytes);
    changed += count;
  }
  return changed;
};

const correctBlock = (
  state: CheckState,
  bytes: Uint8Array,
  first: HostCluster,
  direction: RefcountDirection,
): number => {
  const { refcountBits } = state.shape;
  const read = refcountReader(bytes, refcountBits);
  const entries = Math.min(state.blockEntries, state.comparedClusters - first);
  let changed = 0;
  for (let at = 0; at < entries; at++) {
    const references = state.clusters.get(hostCluster(first + at), LANE.references);
    const stored = read(at);
    if (direction === 'raise' ? stored >= references : stored <= references) continue;
    writeRefcount(bytes, { bits: refcountBits, at, value: references });
    changed++;
  }
  return changed;
};

/** Widths below 8 bits fill a byte from its low end. */
const writeRefcount = (
  block: Uint8Array,
  entry: { readonly bits: number; readonly at: number; readonly value: number },
): void => {
  const { bits, at, value } = entry;
  const view = viewOf(block);
  if (bits === 8) view.setUint8(at, value);
  else if (bits === 16) view.setUint16(at * 2, value);
  else if (bits === 32) view.setUint32(at * 4, value);
  else if (bits === 64) writeU64BE(view, at * 8, value);
  else {
    const perByte = 8 / bits;
    const shift = (at % perByte) * bits;
    const byte = Math.floor(at / perByte);
    const others = view.getUint8(byte) & ~((2 ** bits - 1) << shift);
    view.setUint8(byte, others | (value << shift));
  }
};
