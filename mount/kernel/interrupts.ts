/**
 * INTERRUPT: a request whose caller has been given a signal. One that waits is answered with EINTR at once; one that is served
 * ends when its I/O does, unless that takes too long.
 */
import { BlockError } from '../../src/base/block-error.ts';
import { ERRNO } from '../../src/base/errno.ts';
import { INTERRUPT_IN, OPCODE } from './abi.ts';
import type { FuseRequest } from './request.ts';

/**
 * A request that is served goes on for so long after its caller has been interrupted, in ms: any signal interrupts, and who reads
 * from a disk expects no EINTR. One that takes longer (a server that does not answer) is answered with it.
 */
const INTERRUPTED_AFTER_MS = 1000;
/** Requests that leave nothing behind when their answer is not wanted. */
const INTERRUPTIBLE: ReadonlySet<number> = new Set([OPCODE.READ, OPCODE.LSEEK, OPCODE.FSYNC]);

export interface InterruptsOptions {
  readonly serving: ReadonlySet<FuseRequest>;
  /** Takes a request that nobody has begun to serve from those that wait; null when it is not among them. */
  readonly removeWaiting: (uniqueLow: number, uniqueHigh: number) => FuseRequest | null;
  /** Answers a request that was never started. */
  readonly refuse: (request: FuseRequest, error: BlockError) => void;
  /** Writes a whole reply. */
  readonly write: (request: FuseRequest, reply: Uint8Array) => void;
}

export class Interrupts {
  readonly #options: InterruptsOptions;
  /** Served requests that were answered before their work has ended. */
  readonly #answered = new Set<FuseRequest>();

  constructor(options: InterruptsOptions) {
    this.#options = options;
  }

  /** True, once: it was answered already. Its reply is not sent. */
  takeAnswered(request: FuseRequest): boolean {
    return this.#answered.size > 0 && this.#answered.delete(request);
  }

  /** An INTERRUPT has come. */
  arrived(interrupt: FuseRequest): void {
    const { serving, removeWaiting, refuse } = this.#options;
    const low = interrupt.u32(INTERRUPT_IN.unique);
    const high = interrupt.u32(INTERRUPT_IN.unique + 4);
    const waiting = removeWaiting(low, high);
    if (waiting !== null) {
      refuse(waiting, new BlockError({ kind: 'interrupted', message: 'interrupted' }));
      return;
    }
    for (const served of serving) {
      if (served.uniqueLow !== low || served.uniqueHigh !== high) continue;
      if (!INTERRUPTIBLE.has(served.opcode)) return;
      setTimeout(() => this.#answer(served), INTERRUPTED_AFTER_MS).unref();
      return;
    }
  }

  // Its I/O may still write to its slot, which it keeps.
  #answer(request: FuseRequest): void {
    if (!this.#options.serving.has(request) || this.#answered.has(request)) return;
    this.#answered.add(request);
    this.#options.write(request, request.errorReply(ERRNO.EINTR));
  }
}
