/** What holds for dirty bitmaps wherever they are made and merged: offline, by the control socket, by jobs. */
import { BlockError } from '../base/block-error.ts';
import type { DirtyBitmap } from './dirty-bitmap.ts';
import type { Node } from './node.ts';

const MIN_DEFAULT_GRANULARITY_BYTES = 4096;
const MAX_DEFAULT_GRANULARITY_BYTES = 65_536;

/** Of a bitmap that nobody gave one: the cluster of the image, 4 to 64 KiB. */
export const defaultGranularity = (root: Node): number =>
  Math.min(
    Math.max(root.driver.clusterBytes, MIN_DEFAULT_GRANULARITY_BYTES),
    MAX_DEFAULT_GRANULARITY_BYTES,
  );

/** Errors: EINVAL for bitmaps of images that are not equally long. `path`: of the target. */
export const refuseOtherLength = (target: DirtyBitmap, source: DirtyBitmap, path: string): void => {
  if (target.lengthBytes === source.lengthBytes) return;
  const message = `its bitmap is for ${target.lengthBytes} bytes, the one to merge for ${source.lengthBytes}`;
  throw new BlockError({ kind: 'bad-request', message, path, op: 'bitmap' });
};
