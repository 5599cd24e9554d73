/**
 * The consistency check of qcow2 images (specification: "Host cluster management", "Cluster mapping", "Snapshots").
 *
 * Order: every reference to host clusters is counted, the refcount structures' own last, then counts and stored
 * refcounts are compared. Read-only.
 */
import { toBlockError } from '../../src/base/block-error.ts';
import type { CheckResult } from '../../src/block/image-check.ts';
import type { Node } from '../../src/block/node.ts';
import { type BitmapDirectory, referenceBitmaps } from './check-bitmaps.ts';
import { compareRefcounts, readRefcountTable } from './check-refcounts.ts';
import { ReferenceWalk } from './check-references.ts';
import { type CheckShape, CheckState, type TablePlace } from './check-state.ts';

/** What else a header refers to. */
export interface CheckTargets {
  readonly snapshots: readonly { readonly name: string; readonly l1: TablePlace }[];
  /** Other structures that take clusters, such as the snapshot table. */
  readonly others: readonly { readonly what: string; readonly place: TablePlace }[];
  /** Null without persistent bitmaps. */
  readonly bitmaps: BitmapDirectory | null;
}

/** The largest L1 table that an image may have, in bytes. */
const MAX_L1_BYTES = 32 << 20;

/**
 * Checks an image whose header is valid. Errors of the tables are in the result; a table that cannot be read, or tables
 * that need more than the image's size explains, end the check with a check error.
 */
export const checkTables = async (
  file: Node,
  shape: CheckShape,
  targets: CheckTargets,
): Promise<CheckResult> => {
  const state = new CheckState(file, shape, await file.driver.allocatedBytes());
  let imageEndOffset = 0;
  try {
    const blocks = await readRefcountTable(state);
    await countReferences(state, new ReferenceWalk(state), targets);
    imageEndOffset = await compareRefcounts(state, blocks);
  } catch (error) {
    state.checkError(toBlockError(error).message);
  }
  return {
    ...state.totals,
    corruptionsFixed: 0,
    leaksFixed: 0,
    totalClusters: Math.ceil(shape.virtualSizeBytes / shape.clusterBytes),
    imageEndOffset,
    findings: state.findings,
  };
};

/**
 * Counts every reference but those of the refcount table to its blocks. False when a structure that names clusters could
 * not be followed: what looks unused may be its. Errors: EIO.
 */
export const countReferences = async (
  state: CheckState,
  walk: ReferenceWalk,
  targets: CheckTargets,
): Promise<boolean> => {
  const { shape } = state;
  let isComplete = true;
  state.reference(0, shape.clusterBytes, 1, () => 'the header');
  await walk.activeL1(shape.l1);
  for (const { name, l1 } of targets.snapshots) {
    const problem = l1Problem(l1, shape.clusterBytes);
    if (problem === null) await walk.snapshotL1(l1, name);
    else state.corruption(`the L1 table of snapshot '${name}' ${problem}`);
    isComplete &&= problem === null;
  }
  await walk.l2Tables();
  for (const { what, place } of targets.others) {
    state.reference(place.offset, place.lengthBytes, 1, () => what);
  }
  const { corruptions } = state.totals;
  if (targets.bitmaps !== null) await referenceBitmaps(state, targets.bitmaps);
  isComplete &&= state.totals.corruptions === corruptions;
  const table = shape.refcountTable;
  state.reference(table.offset, table.lengthBytes, 1, () => 'the refcount table');
  return isComplete;
};

const l1Problem = (l1: TablePlace, clusterBytes: number): string | null => {
  if (l1.offset % clusterBytes !== 0) return `is not cluster aligned (offset ${l1.offset})`;
  if (l1.lengthBytes > MAX_L1_BYTES) return `is larger than 32 MiB (${l1.lengthBytes} bytes)`;
  return null;
};
