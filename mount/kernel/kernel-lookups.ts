/**
 * LOOKUPs and listings of each node that the kernel has not forgotten. It may ask for a node by its id until it has forgotten
 * as many as it was told.
 */
import { BATCH_FORGET_IN } from './abi.ts';
import type { FuseRequest } from './request.ts';

export class KernelLookups {
  readonly #forgotten: (nodeId: number) => void;
  readonly #counts = new Map<number, number>();

  /** `forgotten`: of a node that the kernel does not know any more. */
  constructor(forgotten: (nodeId: number) => void) {
    this.#forgotten = forgotten;
  }

  /** The kernel was told of a node once more. */
  add(nodeId: number): void {
    this.#counts.set(nodeId, (this.#counts.get(nodeId) ?? 0) + 1);
  }

  /** FORGET. */
  forget(request: FuseRequest): void {
    this.#take(request.nodeId, request.u64(0));
  }

  /** BATCH_FORGET: of as many entries as the request has room for. */
  forgetBatch(request: FuseRequest): void {
    const { bytes, count, entryBytes } = BATCH_FORGET_IN;
    const room = Math.floor((request.bodyBytes - bytes) / entryBytes);
    const entries = Math.min(request.u32(count), room);
    for (let i = 0; i < entries; i++) {
      const at = bytes + i * entryBytes;
      this.#take(request.u64(at), request.u64(at + 8));
    }
  }

  // Those that were told by the engine before are not counted here: more may be forgotten than were added.
  #take(nodeId: number, count: number): void {
    const left = (this.#counts.get(nodeId) ?? 0) - count;
    if (left > 0) {
      this.#counts.set(nodeId, left);
      return;
    }
    this.#counts.delete(nodeId);
    this.#forgotten(nodeId);
  }
}
