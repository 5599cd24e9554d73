/** Whether two images show the same bytes: `vdiskfs compare`. */
import { type BlockError, toBlockError } from '../base/block-error.ts';
import { guestOffset } from '../base/units.ts';
import type { BlockStatus } from '../block/block-status.ts';
import type { Node } from '../block/node.ts';

export type Comparison =
  | { readonly identical: true; readonly sizesDiffer: boolean }
  | {
      readonly identical: false;
      /** `content`: first byte that differs. `allocation`, `size`: strict comparison alone. */
      readonly reason: 'content' | 'allocation' | 'size';
      readonly offset: number;
    };

export interface CompareOptions {
  /** Sizes and allocation must be equal too. */
  readonly strict: boolean;
  readonly progress: (doneBytes: number, totalBytes: number) => void;
}

/** Which half of the work failed: the exit status tells them apart. */
export class CompareFailed extends Error {
  override readonly name = 'CompareFailed';
  readonly stage: 'map' | 'read';
  readonly failure: BlockError;

  constructor(stage: 'map' | 'read', failure: BlockError) {
    super(failure.message, { cause: failure });
    this.stage = stage;
    this.failure = failure;
  }
}

const CHUNK_BYTES = 1 << 20;

/**
 * Compares what two images show. The longer one's tail must read as zeros, unless strict. Ranges that both hold as
 * zero are not read. Errors: CompareFailed.
 */
export const compareImages = async (
  a: Node,
  b: Node,
  options: CompareOptions,
): Promise<Comparison> => {
  const shorter = Math.min(a.lengthBytes, b.lengthBytes);
  const longer = Math.max(a.lengthBytes, b.lengthBytes);
  if (options.strict && shorter !== longer) {
    return { identical: false, reason: 'size', offset: shorter };
  }
  const buffers = { a: new Uint8Array(CHUNK_BYTES), b: new Uint8Array(CHUNK_BYTES) };
  for (let at = 0; at < longer; ) {
    options.progress(at, longer);
    const [x, y] = await Promise.all([statusAt(a, at), statusAt(b, at)]);
    const length = Math.min(x?.lengthBytes ?? Infinity, y?.lengthBytes ?? Infinity, longer - at);
    if (options.strict && isAllocated(x) !== isAllocated(y)) {
      return { identical: false, reason: 'allocation', offset: at };
    }
    if (!(isZero(x) && isZero(y))) {
      const progress = (at: number): void => options.progress(at, longer);
      const difference = await firstDifference(
        a,
        b,
        { start: at, lengthBytes: length },
        buffers,
        progress,
      );
      if (difference !== null) return { identical: false, reason: 'content', offset: difference };
    }
    at += length;
  }
  return { identical: true, sizesDiffer: shorter !== longer };
};

const statusAt = async (node: Node, at: number): Promise<BlockStatus | null> => {
  if (at >= node.lengthBytes) return null;
  try {
    return await node.blockStatus(guestOffset(at), node.lengthBytes - at);
  } catch (error) {
    throw new CompareFailed('map', toBlockError(error, { path: node.path }));
  }
};

const isZero = (s: BlockStatus | null): boolean => s === null || s.zero;
const isAllocated = (s: BlockStatus | null): boolean => s?.allocated ?? false;

const firstDifference = async (
  a: Node,
  b: Node,
  { start, lengthBytes }: { readonly start: number; readonly lengthBytes: number },
  buffers: { readonly a: Uint8Array; readonly b: Uint8Array },
  progress: (doneBytes: number) => void,
): Promise<number | null> => {
  for (let done = 0; done < lengthBytes; done += CHUNK_BYTES) {
    progress(start + done);
    const size = Math.min(CHUNK_BYTES, lengthBytes - done);
    const [x, y] = [buffers.a.subarray(0, size), buffers.b.subarray(0, size)];
    await Promise.all([readAt(a, start + done, x), readAt(b, start + done, y)]);
    if (Buffer.compare(x, y) !== 0) return start + done + mismatch(x, y);
  }
  return null;
};

const readAt = async (node: Node, at: number, buffer: Uint8Array): Promise<void> => {
  try {
    if (at < node.lengthBytes) await node.readClipped(guestOffset(at), buffer);
    else buffer.fill(0);
  } catch (error) {
    throw new CompareFailed('read', toBlockError(error, { path: node.path }));
  }
};

const mismatch = (x: Uint8Array, y: Uint8Array): number => x.findIndex((byte, i) => byte !== y[i]);
