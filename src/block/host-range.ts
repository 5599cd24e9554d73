/**
 * Bytes that lie as they are in one file of this host: a copy can be made from there by the kernel, without their coming into
 * memory of ours. Stands for a buffer where a driver only hands bytes on.
 */
import { BlockError } from '../base/block-error.ts';
import type { GuestOffset } from '../base/units.ts';
import type { Node } from './node.ts';

export class HostRange {
  /** The protocol node of the file. */
  readonly file: Node;
  /** In the file, in bytes. */
  readonly offset: number;
  readonly length: number;

  constructor(file: Node, offset: number, lengthBytes: number) {
    this.file = file;
    this.offset = offset;
    this.length = lengthBytes;
  }

  /** As of a typed array; neither argument may be negative. */
  subarray(from: number, to = this.length): HostRange {
    const start = Math.min(from, this.length);
    const end = Math.max(start, Math.min(to, this.length));
    return new HostRange(this.file, this.offset + start, end - start);
  }
}

/**
 * Tells `use` where in a file of the host all of a range lies, as the reader of `node` sees it; null where it is in
 * several places, in none, or not as it is. It stays there until `use` has ended. Errors: of reading metadata; those of `use`.
 */
export const withPlace = async <T>(
  node: Node,
  offset: GuestOffset,
  lengthBytes: number,
  use: (place: HostRange | null) => Promise<T>,
): Promise<T> => {
  if (lengthBytes === 0 || offset + lengthBytes > node.lengthBytes) return use(null);
  const token = node.epochs.enter();
  try {
    const m = await node.driver.mapping(offset, lengthBytes);
    if (m.lengthBytes < lengthBytes) return await use(null);
    if (m.kind === 'data' && m.file.driver.hostFd !== undefined) {
      const isInside = m.hostOffset + lengthBytes <= m.file.lengthBytes;
      return await use(isInside ? new HostRange(m.file, m.hostOffset, lengthBytes) : null);
    }
    if (m.kind === 'unallocated' && node.backing !== null) {
      return await withPlace(node.backing, offset, lengthBytes, use);
    }
    return await use(null);
  } finally {
    node.epochs.leave(token);
  }
};

/** What is written, in memory or in a file. */
export type Content = Uint8Array | HostRange;

/** The bytes have to go through memory. Ends in `Node.copyIn`, which answers false for it. */
export const notCopied = (): BlockError =>
  new BlockError({ kind: 'unsupported', message: 'the host cannot copy this from file to file' });
