/**
 * Bytes that lie as they are in one file of this host: a copy can be made from there by the kernel, without their coming into
 * memory of ours. Stands for a buffer where a driver only hands bytes on.
 */
import { BlockError } from '../base/block-error.ts';
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

/** What is written, in memory or in a file. */
export type Content = Uint8Array | HostRange;

/** The bytes have to go through memory. Ends in `Node.copyIn`, which answers false for it. */
export const notCopied = (): BlockError =>
  new BlockError({ kind: 'unsupported', message: 'the host cannot copy this from file to file' });
