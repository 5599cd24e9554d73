/**
 * Requests on the content of views that are held: they are put aside, outside of slots, however long that takes, and every
 * other request of the view is served.
 *
 * It owns in which phase of a hand-over each view is (hand-over.ts has the order), what waits, and which ranges the kernel
 * may have read into its pages since its pages were begun to be dropped.
 */
import { BlockError } from '../../src/base/block-error.ts';
import { type ByteRange, overlaps } from '../../src/base/range.ts';
import {
  COPY_FILE_RANGE_IN,
  OPCODE,
  READ_IN,
  SETATTR,
  SETATTR_IN,
  WRITE_CACHE,
  WRITE_IN,
} from './abi.ts';
import type { FuseRequest } from './request.ts';

/**
 * `watched`: all is served, reads are noted. `dropping`: held, but for what the dropping of pages waits for. `held`: held.
 * `settling`: served, but for writes of pages from the time before, which fail.
 */
export type HoldPhase = 'watched' | 'dropping' | 'held' | 'settling';

/** What one view may have put aside; beyond it requests fail with ENOMEM. */
const MAX_HELD = 16_384;
const MAX_HELD_BYTES = 256 << 20;

export interface HeldRequestsOptions {
  /** Whether the view of a node is held although no phase of it is known: an earlier engine has held it. */
  readonly isHeld: (nodeId: number) => boolean;
  /** Takes a request that has just begun out of its slot and out of what its view may have in flight. */
  readonly putAside: (request: FuseRequest) => void;
  /** Answers one that has just begun. */
  readonly fail: (request: FuseRequest, error: BlockError) => void;
  /** Answers one that was put aside. */
  readonly failAside: (request: FuseRequest, error: BlockError) => void;
  /** Takes one up that was put aside. */
  readonly again: (request: FuseRequest) => void;
}

interface Aside {
  readonly requests: FuseRequest[];
  bytes: number;
}

export class HeldRequests {
  readonly #options: HeldRequestsOptions;
  readonly #phases = new Map<number, HoldPhase>();
  readonly #aside = new Map<number, Aside>();
  /** Of views that are watched, or whose pages are being dropped: what is to be dropped next. */
  readonly #reads = new Map<number, ByteRange[]>();
  /** Of views whose pages are being dropped: which, in this round. */
  readonly #dropped = new Map<number, readonly ByteRange[]>();

  constructor(options: HeldRequestsOptions) {
    this.#options = options;
  }

  /** Begins to note reads. `serving`: what is in flight at this moment. */
  watch(nodeId: number, serving: Iterable<FuseRequest>): void {
    this.#phases.set(nodeId, 'watched');
    this.#reads.set(nodeId, []);
    for (const request of serving) this.#note(request, nodeId);
  }

  /** Null: as it is without a hand-over. */
  enter(nodeId: number, phase: 'held' | 'settling' | null): void {
    if (phase === null) this.#phases.delete(nodeId);
    else this.#phases.set(nodeId, phase);
    this.#reads.delete(nodeId);
    this.#dropped.delete(nodeId);
  }

  /** Whether a request that is about to be served is not to be. */
  takes(request: FuseRequest): boolean {
    if (!isOnContent(request)) return false;
    const nodeId = this.#heldNodeOf(request);
    if (nodeId === null) return false;
    switch (this.#phaseOf(nodeId)) {
      case 'watched':
        this.#note(request, nodeId);
        return false;
      case 'settling':
        if (!isCachedWrite(request)) return false;
        this.#options.fail(request, lost());
        return true;
      case 'dropping':
        if (isCachedWrite(request) || this.#isDropped(request, nodeId)) return false;
        break;
      default:
        break;
    }
    this.#putAside(nodeId, request);
    return true;
  }

  /**
   * Enters `dropping`, or its next round. Returns what was read since the round before, in order: pages of it the kernel is
   * to drop in this one. A read of such a page means that it is dropped already, and that the kernel has locked it: the dropping
   * would wait for that read. So it is served, and counts for the next round.
   */
  nextRound(nodeId: number): readonly ByteRange[] {
    const ranges = joined(this.#reads.get(nodeId) ?? []);
    this.#reads.set(nodeId, []);
    this.#dropped.set(nodeId, ranges);
    this.#phases.set(nodeId, 'dropping');
    return ranges;
  }

  /** What was put aside goes on. `fresh`: writes of pages fail instead. */
  takeUp(nodeId: number, { fresh }: { readonly fresh: boolean }): void {
    const { requests } = this.#aside.get(nodeId) ?? { requests: [] };
    this.#aside.delete(nodeId);
    for (const request of requests) {
      if (fresh && isCachedWrite(request)) this.#options.failAside(request, lost());
      else this.#options.again(request);
    }
  }

  /** Takes one out that was put aside, by the halves of its `unique`; null for none. */
  remove(uniqueLow: number, uniqueHigh: number): FuseRequest | null {
    for (const aside of this.#aside.values()) {
      const at = aside.requests.findIndex(
        (r) => r.uniqueLow === uniqueLow && r.uniqueHigh === uniqueHigh,
      );
      const [found] = at < 0 ? [] : aside.requests.splice(at, 1);
      if (found === undefined) continue;
      aside.bytes -= found.heldBytes;
      return found;
    }
    return null;
  }

  #phaseOf(nodeId: number): HoldPhase | null {
    const known = this.#phases.get(nodeId);
    if (known !== undefined) return known;
    return this.#options.isHeld(nodeId) ? 'held' : null;
  }

  /** A copy touches two views: the one that keeps it from being served. */
  #heldNodeOf(request: FuseRequest): number | null {
    if (this.#phaseOf(request.nodeId) !== null) return request.nodeId;
    if (request.opcode !== OPCODE.COPY_FILE_RANGE) return null;
    const to = request.u64(COPY_FILE_RANGE_IN.nodeIdOut);
    return this.#phaseOf(to) === null ? null : to;
  }

  #isDropped(request: FuseRequest, nodeId: number): boolean {
    if (request.opcode !== OPCODE.READ) return false;
    const range = readRangeOf(request);
    if (this.#dropped.get(nodeId)?.some((dropped) => overlaps(dropped, range)) !== true)
      return false;
    this.#note(request, nodeId);
    return true;
  }

  #note(request: FuseRequest, nodeId: number): void {
    if (request.opcode !== OPCODE.READ || request.nodeId !== nodeId) return;
    this.#reads.get(nodeId)?.push(readRangeOf(request));
  }

  #putAside(nodeId: number, request: FuseRequest): void {
    const aside = this.#aside.get(nodeId) ?? { requests: [], bytes: 0 };
    this.#aside.set(nodeId, aside);
    const bytes = request.heldBytes;
    if (aside.requests.length >= MAX_HELD || aside.bytes + bytes > MAX_HELD_BYTES) {
      const message = 'too many requests of this view wait for its activation';
      this.#options.fail(request, new BlockError({ kind: 'busy', errno: 'ENOMEM', message }));
      return;
    }
    aside.requests.push(request);
    aside.bytes += bytes;
    this.#options.putAside(request);
  }
}

const ON_CONTENT: ReadonlySet<number> = new Set([
  OPCODE.READ,
  OPCODE.WRITE,
  OPCODE.FSYNC,
  OPCODE.FALLOCATE,
  OPCODE.LSEEK,
  OPCODE.COPY_FILE_RANGE,
]);

const isOnContent = (request: FuseRequest): boolean =>
  ON_CONTENT.has(request.opcode) ||
  (request.opcode === OPCODE.SETATTR && (request.u32(SETATTR_IN.valid) & SETATTR.SIZE) !== 0);

/** Its writer was told long ago that it is done. */
const isCachedWrite = (request: FuseRequest): boolean =>
  request.opcode === OPCODE.WRITE && (request.u32(WRITE_IN.writeFlags) & WRITE_CACHE) !== 0;

const readRangeOf = (request: FuseRequest): ByteRange => {
  const start = request.u64(READ_IN.offset);
  return { start, end: start + request.u32(READ_IN.size) };
};

const lost = (): BlockError =>
  new BlockError({
    kind: 'io',
    message: 'it was written while another host had the image',
  });

/** In order, and without overlaps. */
const joined = (ranges: readonly ByteRange[]): readonly ByteRange[] => {
  const found: ByteRange[] = [];
  for (const range of [...ranges].sort((a, b) => a.start - b.start)) {
    const last = found.at(-1);
    if (last === undefined || range.start > last.end) found.push(range);
    else found[found.length - 1] = { start: last.start, end: Math.max(last.end, range.end) };
  }
  return found;
};
