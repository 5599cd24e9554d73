/**
 * Sends answers, and gives back the slots of what is answered.
 *
 * Each reply wakes the thread that waits for it; that thread mostly sends its next request, for which a worker wakes up. Replies that leave
 * one right after the other let those two do several requests before they sleep again, and the control plane has its core to itself
 * meanwhile. So while more requests are there to be taken up, replies wait for each other: `MAX_WAITING` of them, and never past the turn
 * of the event loop. Whoever waits for one of those has his next request queued behind the others anyway.
 */
import { writeSync } from 'node:fs';
import type { BlockError } from '../../src/base/block-error.ts';
import type { Log } from '../../src/base/log.ts';
import type { Latencies, Operation } from '../latencies.ts';
import { OPCODE } from './abi.ts';
import { type FuseRequest, REPLY_AT, REPLY_BODY_AT } from './request.ts';

const MAX_WAITING = 16;

export interface AnswersOptions {
  /** Of the FUSE connection. */
  readonly descriptor: number;
  readonly mountpoint: string;
  readonly log: Log;
  readonly latencies: Latencies | null;
  /** Gives a slot back, when the reply that lies in it is written. */
  readonly release: (slot: number) => void;
  /** Whether `flush` is called before the turn ends. */
  readonly mayWait: () => boolean;
}

interface Reply {
  readonly request: FuseRequest;
  readonly lengthBytes: number;
}

export class Answers {
  readonly #options: AnswersOptions;
  readonly #waiting: Reply[] = [];
  #readBytes = 0;
  #writtenBytes = 0;

  constructor(options: AnswersOptions) {
    this.#options = options;
  }

  /** Of READs that were answered with data. */
  get readBytes(): number {
    return this.#readBytes;
  }

  get writtenBytes(): number {
    return this.#writtenBytes;
  }

  /** Answers a request, of which nothing may be used any more. `errno` positive, 0 for success. Never throws. */
  send(request: FuseRequest, errno: number, bodyBytes: number): void {
    if (errno === 0) this.#count(request, bodyBytes);
    const reply = { request, lengthBytes: request.finish(errno, errno === 0 ? bodyBytes : 0) };
    if (!this.#options.mayWait()) {
      this.#finish(reply);
      return;
    }
    this.#waiting.push(reply);
    if (this.#waiting.length >= MAX_WAITING) this.flush();
  }

  /** For a request that was never started. */
  refuse(request: FuseRequest, error: BlockError): void {
    this.write(request, request.bytes, REPLY_AT, request.finish(error.errnoNumber, 0));
    this.#giveBack(request);
  }

  /** For one that was answered before its work has ended. */
  wasAnswered(request: FuseRequest): void {
    this.#giveBack(request);
  }

  /** Nothing waits any more. */
  flush(): void {
    for (const reply of this.#waiting) this.#finish(reply);
    this.#waiting.length = 0;
  }

  /** Writes a whole reply, and leaves the request as it is. */
  write(request: FuseRequest, bytes: Uint8Array, at: number, lengthBytes: number): void {
    const { descriptor, log, mountpoint } = this.#options;
    try {
      writeSync(descriptor, bytes, at, lengthBytes, null);
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code;
      // ENOENT: the request was interrupted. ENODEV: the mount is gone. Nobody waits for the answer.
      if (code === 'ENOENT' || code === 'ENODEV') return;
      log.error(mountpoint, `a reply to request ${request.opcode} was refused: ${code}`);
    }
  }

  #finish({ request, lengthBytes }: Reply): void {
    this.write(request, request.bytes, REPLY_AT, lengthBytes);
    const { latencies } = this.#options;
    latencies?.served(operationOf(request.opcode), performance.now() - request.arrivedMs);
    this.#giveBack(request);
  }

  #giveBack({ slot }: FuseRequest): void {
    if (slot >= 0) this.#options.release(slot);
  }

  #count(request: FuseRequest, bodyBytes: number): void {
    if (request.opcode === OPCODE.READ) this.#readBytes += bodyBytes;
    else if (request.opcode === OPCODE.WRITE)
      this.#writtenBytes += request.reply.getUint32(REPLY_BODY_AT, true);
  }
}

const operationOf = (opcode: number): Operation => {
  if (opcode === OPCODE.READ) return 'read';
  if (opcode === OPCODE.WRITE) return 'write';
  return opcode === OPCODE.FSYNC ? 'fsync' : 'other';
};
