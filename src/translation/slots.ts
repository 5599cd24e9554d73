/**
 * Slots: the request buffers that workers and the control plane share, and the ring on which workers hand them over.
 *
 * A slot belongs to nobody (FREE), to the worker that reads into it (WORKER), or to the control plane (LENT). Workers
 * take the lowest free one, so that a quiet mount touches few pages of memory. A worker without a free slot waits:
 * that is the back pressure.
 *
 *     control memory, words of 32 bits             slot memory
 *     0 ring tail (workers add)                    one region a slot:
 *     1 releases (workers without a slot wait)       0     … HEADER_AREA: the request's header and fixed part end
 *     2 awake: the control plane looks at the ring          there, and so does the header of a reply
 *     3 waiting workers                              HEADER_AREA …: payload of a WRITE, data of a READ; aligned,
 *     16 … state of each slot                               so that direct I/O of the host file can use it
 *     16+slots … the ring: slot + 1, 0 for none
 */
import { assert } from '../base/assert.ts';
import { alignUp, isAligned, isPowerOfTwo } from '../base/range.ts';

export const HEADER_AREA_BYTES = 4096;
/** What a request needs besides its payload, at the end of a slot too: the kernel asks for 4 KiB more than max_write. */
const TAIL_BYTES = 4096;

const TAIL = 0;
const RELEASES = 1;
const AWAKE = 2;
const WAITING = 3;
const FIRST_STATE = 16;

const FREE = 0;
const WORKER = 1;
const LENT = 2;

export interface SharedSlots {
  readonly control: SharedArrayBuffer;
  readonly memory: SharedArrayBuffer;
  /** Where slot 0 begins in `memory`: regions are aligned for direct I/O, the allocation is not. */
  readonly firstByte: number;
  readonly slots: number;
  readonly slotBytes: number;
}

/**
 * `slots`: a power of two, so that the ring goes on when its 32-bit tail wraps. `payloadBytes`: a multiple of 4 KiB.
 * `addressOf`: where memory lies, for the alignment of the regions.
 */
export const createSharedSlots = (options: {
  readonly slots: number;
  readonly payloadBytes: number;
  readonly addressOf: (bytes: Uint8Array) => number;
}): SharedSlots => {
  const { slots, payloadBytes, addressOf } = options;
  assert(isPowerOfTwo(slots) && isAligned(payloadBytes, HEADER_AREA_BYTES), 'see above');
  const slotBytes = HEADER_AREA_BYTES + payloadBytes + TAIL_BYTES;
  const memory = new SharedArrayBuffer(slots * slotBytes + HEADER_AREA_BYTES);
  const address = addressOf(new Uint8Array(memory));
  return {
    control: new SharedArrayBuffer((FIRST_STATE + 2 * slots) * 4),
    memory,
    firstByte: alignUp(address, HEADER_AREA_BYTES) - address,
    slots,
    slotBytes,
  };
};

/** The worker's side. */
export class SlotTaker {
  readonly #words: Int32Array;
  readonly #slots: number;
  readonly #ring: number;

  constructor(shared: SharedSlots) {
    this.#words = new Int32Array(shared.control);
    this.#slots = shared.slots;
    this.#ring = FIRST_STATE + shared.slots;
  }

  /** A slot of this worker's own; blocks the thread until there is one. */
  take(): number {
    const words = this.#words;
    for (;;) {
      const releases = Atomics.load(words, RELEASES);
      const slot = this.takeNow();
      if (slot >= 0) return slot;
      Atomics.add(words, WAITING, 1);
      Atomics.wait(words, RELEASES, releases);
      Atomics.sub(words, WAITING, 1);
    }
  }

  /** The same, but -1 when there is none now. */
  takeNow(): number {
    const words = this.#words;
    for (let slot = 0; slot < this.#slots; slot++) {
      const state = FIRST_STATE + slot;
      if (Atomics.load(words, state) !== FREE) continue;
      if (Atomics.compareExchange(words, state, FREE, WORKER) === FREE) return slot;
    }
    return -1;
  }

  /** Lends a slot of this worker's to the control plane. True: it sleeps, and the doorbell must ring. */
  handOver(slot: number): boolean {
    const words = this.#words;
    Atomics.store(words, FIRST_STATE + slot, LENT);
    const ticket = Atomics.add(words, TAIL, 1) >>> 0;
    // A slot is in the ring once at most, so a ring of as many places as slots has room.
    Atomics.store(words, this.#ring + (ticket % this.#slots), slot + 1);
    return Atomics.exchange(words, AWAKE, 1) === 0;
  }

  /** Whether nobody has a slot: what was handed over in it has left it. */
  isFree(slot: number): boolean {
    return Atomics.load(this.#words, FIRST_STATE + slot) === FREE;
  }

  /** Gives back a slot of this worker's own that it needs no more. */
  drop(slot: number): void {
    release(this.#words, slot);
  }
}

/** The control plane's side. */
export class SlotReceiver {
  readonly #words: Int32Array;
  readonly #slots: number;
  readonly #ring: number;
  #head = 0;

  constructor(shared: SharedSlots) {
    this.#words = new Int32Array(shared.control);
    this.#slots = shared.slots;
    this.#ring = FIRST_STATE + shared.slots;
  }

  /** The next slot that was handed over, -1 when there is none now. */
  next(): number {
    const at = this.#ring + (this.#head % this.#slots);
    const slot = Atomics.load(this.#words, at) - 1;
    if (slot < 0) return -1;
    Atomics.store(this.#words, at, 0);
    this.#head = (this.#head + 1) >>> 0;
    return slot;
  }

  /** Says that the doorbell must ring from now on; look at `next` once more afterwards. */
  sleep(): void {
    Atomics.store(this.#words, AWAKE, 0);
  }

  /** Says that the ring is being looked at: workers need not ring. */
  wake(): void {
    Atomics.store(this.#words, AWAKE, 1);
  }

  /** Gives a lent slot back. */
  release(slot: number): void {
    release(this.#words, slot);
  }
}

const release = (words: Int32Array, slot: number): void => {
  Atomics.store(words, FIRST_STATE + slot, FREE);
  Atomics.add(words, RELEASES, 1);
  if (Atomics.load(words, WAITING) > 0) Atomics.notify(words, RELEASES, 1);
};
