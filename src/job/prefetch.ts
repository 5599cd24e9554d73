/**
 * Brings into an image what an earlier guest has read of the disk, in that order, several stretches at a time: who boots from
 * a slow base then waits for its bandwidth and not for each of its answers.
 */
import { alignDown, alignUp, isAllZero } from '../base/range.ts';
import { guestOffset } from '../base/units.ts';
import type { Node } from '../block/node.ts';
import type { View } from '../block/view.ts';
import { Copies } from './copies.ts';
import type { ReadRange } from './read-record.ts';

const COPIES_AT_ONCE = 8;
const COPY_BYTES = 1 << 20;
/** More of a disk is no boot. */
const MAX_CLUSTERS = 1 << 20;

/** Returns the bytes that were fetched. Errors: those of the base and of the image; what was fetched stays. */
export const prefetch = async (
  view: View,
  ranges: readonly ReadRange[],
  signal: AbortSignal,
): Promise<number> => {
  const copies = new Copies(() => COPIES_AT_ONCE);
  let fetchedBytes = 0;
  try {
    for (const { start, end } of piecesOf(ranges, await view.open())) {
      if (signal.aborted) break;
      await copies.begin(async () => {
        fetchedBytes += await view.withRoot((root) => fetchPiece(root, start, end));
      });
    }
    await copies.finish();
  } finally {
    await copies.settled();
  }
  return fetchedBytes;
};

/** Whole clusters, each once, neighbours together. */
function* piecesOf(
  ranges: readonly ReadRange[],
  root: Node,
): Generator<{ readonly start: number; readonly end: number }> {
  const { clusterBytes } = root.driver;
  const seen = new Set<number>();
  const most = Math.max(clusterBytes, alignDown(COPY_BYTES, clusterBytes));
  for (const { offset, lengthBytes } of ranges) {
    let start = alignDown(offset, clusterBytes);
    const end = alignUp(Math.min(offset + lengthBytes, root.lengthBytes), clusterBytes);
    for (let at = start; at < end; at += clusterBytes) {
      if (seen.has(at)) {
        if (at > start) yield { start, end: at };
        start = at + clusterBytes;
      } else if (at + clusterBytes - start >= most) {
        yield { start, end: at + clusterBytes };
        start = at + clusterBytes;
      }
      seen.add(at);
      if (seen.size > MAX_CLUSTERS) return;
    }
    if (end > start) yield { start, end };
  }
}

const fetchPiece = async (root: Node, start: number, end: number): Promise<number> => {
  let fetchedBytes = 0;
  const last = Math.min(end, root.lengthBytes);
  for (let at = start; at < last; ) {
    const m = await root.mapping(guestOffset(at), last - at);
    const { backing } = root;
    if (m.kind === 'unallocated' && backing !== null && at < backing.lengthBytes) {
      const bytes = Buffer.allocUnsafeSlow(m.lengthBytes);
      await backing.readClipped(guestOffset(at), bytes);
      await root.populate(guestOffset(at), bytes.length, isAllZero(bytes) ? null : bytes);
      fetchedBytes += bytes.length;
    }
    at += m.lengthBytes;
  }
  return fetchedBytes;
};
