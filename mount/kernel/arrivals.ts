/**
 * Takes the requests that workers hand over, in their order: when the doorbell rings, and for a moment after that without ringing.
 *
 * A request that is answered at once makes room for the next one, so the ring need never be empty: a turn is bounded, and the event
 * loop does its other work (I/O that has ended, timers, the control socket) before it goes on.
 */
import type { SlotReceiver } from '../../src/translation/slots.ts';
import { RingWatch } from './ring-watch.ts';

/** Requests of one turn. */
const REQUESTS_A_TURN = 64;

export interface ArrivalsOptions {
  readonly receiver: Pick<SlotReceiver, 'next' | 'sleep' | 'wake'>;
  /** Serves the request in a slot. */
  readonly arrived: (slot: number) => void;
  /** Called when no more requests are there, and when a turn ends, also where `arrived` throws. */
  readonly noneLeft: () => void;
  /** Something was begun whose next step needs the event loop. */
  readonly isBusy: () => boolean;
  /** Does a piece of what can be done while nothing else is to do, some ten microseconds; false: there is none. */
  readonly doIdleWork: () => boolean;
  /** Lets another thread that waits for this core have it. */
  readonly yieldCore: () => void;
  /** In ms. */
  readonly now: () => number;
}

export class Arrivals {
  readonly #options: ArrivalsOptions;
  readonly #watch: RingWatch;
  #isTaking = false;

  constructor(options: ArrivalsOptions) {
    const { receiver, isBusy, yieldCore, now } = options;
    this.#options = options;
    const next = (): number => receiver.next();
    this.#watch = new RingWatch({ next, isBusy, yieldCore, now });
  }

  /** In a turn, whose end calls `noneLeft`. */
  get isTaking(): boolean {
    return this.#isTaking;
  }

  /** The doorbell has rung. */
  rung(): void {
    this.#isTaking = true;
    try {
      this.#takeSome();
    } finally {
      this.#isTaking = false;
      this.#options.noneLeft();
    }
  }

  #takeSome(): void {
    const { receiver, arrived } = this.#options;
    receiver.wake();
    this.#watch.woken();
    for (let taken = 0; taken < REQUESTS_A_TURN; taken++) {
      const slot = this.#next();
      if (slot < 0) return;
      arrived(slot);
      if (this.#watch.isTurnOver) break;
    }
    // Nobody rings meanwhile.
    setImmediate(() => this.rung());
  }

  /** All of them, when no worker is left that hands over more. */
  takeRest(): void {
    const { receiver, arrived } = this.#options;
    for (let slot = receiver.next(); slot >= 0; slot = receiver.next()) arrived(slot);
  }

  /** -1: the doorbell will ring. */
  #next(): number {
    const { receiver, noneLeft, isBusy, doIdleWork } = this.#options;
    const arrived = receiver.next();
    if (arrived >= 0) return arrived;
    noneLeft();
    while (!isBusy() && !this.#watch.isTurnOver && doIdleWork()) {
      const meanwhile = receiver.next();
      if (meanwhile >= 0) return meanwhile;
    }
    const seen = this.#watch.look();
    if (seen >= 0) return seen;
    receiver.sleep();
    // One that came before `sleep` did not ring.
    const late = receiver.next();
    if (late >= 0) receiver.wake();
    return late;
  }
}
