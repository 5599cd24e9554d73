/**
 * Which requests are served now and which wait: at most `perView` of one view at once, the others first come first
 * served in buffers of their own, within a bound; and never so many in slots that the workers have none to read into.
 */
import { BlockError } from '../../src/base/block-error.ts';
import type { FuseRequest } from './request.ts';

/** Started one after the other before the event loop has its turn: each may be answered at once, and ends in the next one's start. */
const STARTS_A_TURN = 64;
/** What one view may have waiting; beyond it requests fail with ENOMEM. */
const MAX_WAITING = 16_384;
const MAX_WAITING_BYTES = 256 << 20;
/** Views without requests that are remembered, so that the next one of theirs need not be made room for. */
const KEPT_VIEWS = 64;

interface ViewRequests {
  serving: number;
  readonly waiting: FuseRequest[];
  waitingBytes: number;
}

export interface RequestQueueOptions {
  readonly perView: number;
  /** Slots that requests may hold at once, over all views. */
  readonly inSlots: number;
  readonly start: (request: FuseRequest) => void;
  /** Moves a request out of its slot, and calls `leftSlot`. */
  readonly detach: (request: FuseRequest) => void;
  readonly refuse: (request: FuseRequest, error: BlockError) => void;
}

export class RequestQueue {
  readonly #options: RequestQueueOptions;
  readonly #views = new Map<number, ViewRequests>();
  #inSlots = 0;
  /** Taken from those that wait, and about to be started. */
  #ready: FuseRequest[] = [];
  #isStarting = false;

  constructor(options: RequestQueueOptions) {
    this.#options = options;
  }

  /** Requests that wait, over all views. */
  get waiting(): number {
    let sum = 0;
    for (const view of this.#views.values()) sum += view.waiting.length;
    return sum;
  }

  /** Some have waited, and start in one of the next turns of the event loop: when nothing is served either, none wait but those. */
  get isStarting(): boolean {
    return this.#ready.length > 0;
  }

  add(request: FuseRequest): void {
    const { perView, inSlots, detach, start } = this.#options;
    const view = this.#viewOf(request.nodeId);
    this.#inSlots++;
    const starts = view.serving < perView;
    if (!starts || this.#inSlots > inSlots) detach(request);
    if (starts) {
      view.serving++;
      start(request);
      return;
    }
    this.#wait(view, request);
  }

  /** One that was put aside: it has no slot, and `ended` was called for it. */
  again(request: FuseRequest): void {
    const view = this.#viewOf(request.nodeId);
    if (view.serving >= this.#options.perView) {
      this.#wait(view, request);
      return;
    }
    view.serving++;
    this.#options.start(request);
  }

  /** A request has left its slot: `detach` has moved it, or its answer is written. */
  leftSlot(): void {
    this.#inSlots--;
  }

  /** A served request has been answered: the next one of its view starts. */
  ended(request: FuseRequest): void {
    const view = this.#viewOf(request.nodeId);
    view.serving--;
    const next = view.waiting.shift();
    if (next !== undefined) {
      view.waitingBytes -= next.heldBytes;
      view.serving++;
      this.#ready.push(next);
      if (!this.#isStarting) this.#startReady();
    } else if (view.serving === 0 && this.#views.size > KEPT_VIEWS)
      this.#views.delete(request.nodeId);
  }

  // Not from inside of one another: thousands may wait, and each be answered within its start.
  #startReady(): void {
    this.#isStarting = true;
    try {
      for (let started = 0; started < STARTS_A_TURN; started++) {
        const next = this.#ready.shift();
        if (next === undefined) break;
        this.#options.start(next);
      }
    } finally {
      this.#isStarting = false;
    }
    if (this.#ready.length === 0) return;
    this.#isStarting = true;
    setImmediate(() => this.#startReady());
  }

  /** Takes a waiting request out, by the halves of its `unique`; null when none waits under it. */
  removeWaiting(uniqueLow: number, uniqueHigh: number): FuseRequest | null {
    for (const view of this.#views.values()) {
      const at = view.waiting.findIndex(
        (r) => r.uniqueLow === uniqueLow && r.uniqueHigh === uniqueHigh,
      );
      const [found] = at < 0 ? [] : view.waiting.splice(at, 1);
      if (found === undefined) continue;
      view.waitingBytes -= found.heldBytes;
      return found;
    }
    return null;
  }

  #wait(view: ViewRequests, request: FuseRequest): void {
    const bytes = request.heldBytes;
    if (view.waiting.length >= MAX_WAITING || view.waitingBytes + bytes > MAX_WAITING_BYTES) {
      const message = 'too many requests of this view wait';
      this.#options.refuse(request, new BlockError({ kind: 'busy', errno: 'ENOMEM', message }));
      return;
    }
    view.waitingBytes += bytes;
    view.waiting.push(request);
  }

  #viewOf(nodeId: number): ViewRequests {
    const known = this.#views.get(nodeId);
    if (known !== undefined) return known;
    const fresh: ViewRequests = { serving: 0, waiting: [], waitingBytes: 0 };
    this.#views.set(nodeId, fresh);
    return fresh;
  }
}
