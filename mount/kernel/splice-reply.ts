/**
 * Answers of long reads without copying them: the host file's pages go through a pipe into the reply, and the kernel
 * copies them once, to the reader.
 *
 * Belongs to one worker. The pages are the host file's own until the reply is written, so the whole of it happens
 * inside the worker's hazard record, as a copy would.
 */
import { closeSync, readSync, writeSync } from 'node:fs';
import { openPipe, setPipeCapacity, splice } from '../../src/os/descriptors.ts';
import { type Lookup, ZERO_RUN } from '../../src/translation/lookup.ts';

/** Shorter ones are copied: three system calls more cost as much as copying so many bytes. */
export const SPLICE_FROM_BYTES = 64 << 10;
const PAGE_BYTES = 4096;
const ENOENT = 2;
const ENODEV = 19;

/** Where the bytes of a reply lie; as `Lookup` says. */
export type Runs = Pick<Lookup, 'count' | 'files' | 'hostOffsets' | 'lengths'>;

export interface SpliceReplyOptions {
  readonly descriptor: number;
  /** 8 bytes of memory that does not move, for offsets. */
  readonly offset: DataView;
  readonly offsetAddress: number;
  /** Largest read, in bytes. */
  readonly maxReadBytes: number;
}

export class SpliceReply {
  readonly #options: SpliceReplyOptions;
  readonly #readEnd: number;
  readonly #writeEnd: number;
  /** Pages that the pipe holds, less the one of the reply's header. */
  readonly #pages: number;

  constructor(options: SpliceReplyOptions) {
    this.#options = options;
    const { readEnd, writeEnd } = openPipe();
    this.#readEnd = readEnd;
    this.#writeEnd = writeEnd;
    // A run that does not begin at a page's start needs a page more; there are at most as many runs as clusters.
    this.#pages = setPipeCapacity(writeEnd, 2 * options.maxReadBytes) / PAGE_BYTES - 1;
  }

  /**
   * Writes a reply of the runs' bytes. False: nothing was written, copy instead (zeros, a short file, too many pieces).
   * `header`: the reply's header, complete.
   */
  send(runs: Runs, header: Uint8Array): boolean {
    if (!this.#fits(runs)) return false;
    writeSync(this.#writeEnd, header);
    let total = header.length;
    for (let run = 0; run < runs.count; run++) {
      const length = runs.lengths[run] ?? 0;
      const moved = this.#take(runs.files[run] ?? ZERO_RUN, runs.hostOffsets[run] ?? 0, length);
      total += moved;
      if (moved < length) {
        this.#empty();
        return false;
      }
    }
    const sent = splice(this.#readEnd, 0, this.#options.descriptor, total);
    if (sent === total) return true;
    // What is left would be taken for the next reply.
    this.#empty();
    // ENOENT: the request was interrupted. ENODEV: the mount is going. Nobody waits for the answer.
    return sent === -ENOENT || sent === -ENODEV;
  }

  close(): void {
    closeSync(this.#readEnd);
    closeSync(this.#writeEnd);
  }

  #fits(runs: Runs): boolean {
    let pages = 0;
    for (let run = 0; run < runs.count; run++) {
      if (runs.files[run] === ZERO_RUN) return false;
      pages += Math.ceil((runs.lengths[run] ?? 0) / PAGE_BYTES) + 1;
    }
    return pages <= this.#pages;
  }

  /** Bytes of a host file that are in the pipe now: fewer than asked for at its end, or when it cannot be spliced. */
  #take(file: number, hostOffset: number, lengthBytes: number): number {
    const { offset, offsetAddress } = this.#options;
    let done = 0;
    while (done < lengthBytes) {
      const at = hostOffset + done;
      offset.setUint32(0, at % 2 ** 32, true);
      offset.setUint32(4, Math.floor(at / 2 ** 32), true);
      const moved = splice(file, offsetAddress, this.#writeEnd, lengthBytes - done);
      if (moved <= 0) break;
      done += moved;
    }
    return done;
  }

  #empty(): void {
    const sink = new Uint8Array(64 << 10);
    try {
      while (readSync(this.#readEnd, sink) > 0);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') throw error;
    }
  }
}
