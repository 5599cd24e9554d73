/**
 * Whether an image's metadata was preallocated: then clusters are mapped that the host stores nothing for, and block
 * status looks for holes of the host below them. Found out as QEMU does, so that both show the same map.
 */
import type { Node } from '../../src/block/node.ts';
import { countUsedClusters } from './check-refcounts.ts';
import { type CheckShape, CheckState } from './check-state.ts';

/** More clusters in use than the host's blocks explain by a tenth, and by two, are no accident. */
const SLACK = 10 / 9;
const SLACK_CLUSTERS = 2;

/**
 * Counts the clusters in use until they are too many for what the file takes. Reads refcount blocks: ask once, and not
 * before block status needs it. Errors: EIO.
 */
export const hasPreallocatedMetadata = async (file: Node, shape: CheckShape): Promise<boolean> => {
  const allocatedBytes = await file.driver.allocatedBytes();
  const stored = Math.floor(allocatedBytes / shape.clusterBytes);
  const threshold = Math.max(Math.floor(stored * SLACK), stored + SLACK_CLUSTERS);
  const state = new CheckState(file, shape, allocatedBytes);
  return (await countUsedClusters(state, threshold)) >= threshold;
};
