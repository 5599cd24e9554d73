/**
 * What a server has answered and not yet flushed: kept, so that a server that comes back without it gets it again, in
 * order, before anything else is asked of it. That is what makes a later flush tell the truth (NFS does the same with
 * writes that are not committed).
 */

import { Parts } from '../../src/base/parts.ts';
import { Turns } from '../../src/base/turns.ts';
import { RangeLocks } from '../../src/block/range-locks.ts';
import { COMMAND } from './protocol.ts';
import type { NbdRequest } from './request.ts';

/** What an operation counts beside its payload: that bounds their number too. */
const RECORD_BYTES = 4096;
const REPLAYED_AT_ONCE = 16;

export class Unflushed {
  /** By number, in the order of the answers. */
  readonly #requests = new Map<number, NbdRequest>();
  #next = 1;
  #bytes = 0;

  /** Memory that is held. */
  get bytes(): number {
    return this.#bytes;
  }

  /** A change was answered. */
  add(request: NbdRequest): void {
    this.#requests.set(this.#next++, request);
    this.#bytes += sizeOf(request);
  }

  /** For `flushed`: everything up to now. */
  mark(): number {
    return this.#next;
  }

  /** A flush that was sent at `mark` has been answered. */
  flushed(mark: number): void {
    for (const [number, request] of this.#requests) {
      if (number >= mark) return;
      this.#requests.delete(number);
      this.#bytes -= sizeOf(request);
    }
  }

  /** Nothing is kept any more. */
  clear(): void {
    this.#requests.clear();
    this.#bytes = 0;
  }

  /** Sends everything again. Those that overlap go one after the other. Errors: those of `send`, the first. */
  async replay(send: (request: NbdRequest) => Promise<unknown>): Promise<void> {
    const locks = new RangeLocks();
    const turns = new Turns(REPLAYED_AT_ONCE);
    const sent = new Parts();
    for (const request of this.#requests.values()) {
      const { offset, lengthBytes } = request;
      // Asked for in order: a later one waits for all before it that overlap.
      const lock = locks.acquire({ start: offset, end: offset + lengthBytes });
      const run = async (): Promise<void> => {
        using _range = await lock;
        using _turn = await turns.take();
        await send(request);
      };
      sent.add(run());
    }
    await sent.results();
  }
}

const sizeOf = (request: NbdRequest): number => RECORD_BYTES + (request.payload?.length ?? 0);

export const changes = (request: NbdRequest): boolean =>
  request.command === COMMAND.write ||
  request.command === COMMAND.writeZeroes ||
  request.command === COMMAND.trim;
