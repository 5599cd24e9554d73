/**
 * How a worker waits for its next request. To wake its thread takes longer than to answer a read from memory. So while requests come
 * one at a time, each soon after the one before, one worker looks for the next one for a moment before it sleeps in its read. The kernel would
 * wake another worker for each request all the same; so those who have nothing to do meanwhile do not read, but park. Those that sleep in
 * their reads already have to come out of them first: for some requests the one that is to look sleeps as well, behind them.
 *
 * Where a second request is in flight, workers are quicker side by side. At the first sign of one, and when the one that looks had to wait
 * for something else, all of them read as they come, for thousands of requests.
 *
 * Whoever parks does not depend on the worker that looks: one that has not looked for a millisecond or two is deposed.
 *
 *     words   0 number of the worker that looks, + 1; 0 for none   1 looks so far   2 wake-ups so far   3 workers that are parked
 *             4 requests that are to come before anybody looks   5 times that one was deposed of late
 */

/** So often it looks, giving its core away in between: some 60 µs where nobody else wants it. */
const GLANCES = 50;
/** Requests after a look in vain before the next one; twice as many each time, up to the second number. */
const FIRST_REST = 8;
const LAST_REST = 1024;
/** Requests after a sign that several are in flight. */
const CROWD_REST = 8192;
/** Requests after one that looks was deposed, who may have lost its core and no more; twice as many each time, up to CROWD_REST. */
const DEPOSED_REST = 256;
/** Requests that were found by looking, after which deposals before them do not count. */
const STEADY = 4096;
const PARK_MS = 1;
/** So many requests, for each worker, are left to those that sleep in their reads. */
const LEFT_TO_EACH = 4;

const LOOKER = 0;
const LOOKS = 1;
const WAKE_UPS = 2;
const PARKED = 3;
const REST = 4;
const DEPOSALS = 5;
const WORDS = 6;

export const createSharedWatch = (): SharedArrayBuffer => new SharedArrayBuffer(WORDS * 4);

export interface RequestWatchOptions {
  readonly shared: SharedArrayBuffer;
  readonly worker: number;
  /** How many there are. */
  readonly workers: number;
  /** Whether a read would return now. */
  readonly isPending: () => boolean;
  /** Lets another thread that waits for this core have it. */
  readonly yieldCore: () => void;
  /** For tests. In ms. */
  readonly parkMs?: number;
}

/** For one worker. It allocates nothing, and asks no clock. */
export class RequestWatch {
  readonly #options: RequestWatchOptions;
  readonly #parkMs: number;
  readonly #words: Int32Array;
  readonly #self: number;
  /** Requests before this worker looks again, and after its next look in vain. */
  #rest = 0;
  #nextRest = FIRST_REST;
  /** Requests that it has left to others since it is the one that looks. */
  #left = 0;
  /** And that it has ever found by looking. */
  #found = 0;

  constructor(options: RequestWatchOptions) {
    this.#options = options;
    this.#parkMs = options.parkMs ?? PARK_MS;
    this.#words = new Int32Array(options.shared);
    this.#self = options.worker + 1;
  }

  /** Before the read of a request. */
  begin(): void {
    if (Atomics.load(this.#words, REST) > 0) {
      Atomics.sub(this.#words, REST, 1);
      return;
    }
    if (this.#hasParked()) return;
    if (this.#rest > 0) this.#rest--;
    else this.#look();
  }

  /** The read has got one. */
  received(): void {
    if (this.#isLooker() && this.#options.isPending()) this.disperse();
  }

  /** Several requests are in flight, or this worker may wait for something else: nobody looks or parks for a while. */
  disperse(): void {
    if (!this.#isLooker()) return;
    Atomics.store(this.#words, REST, CROWD_REST);
    this.#stop();
  }

  /** Somebody else answers the request, who needs a core for that: this worker does not look for the next ones. */
  handedOver(): void {
    this.#rest = Math.max(this.#rest, FIRST_REST);
    if (this.#isLooker()) this.#stop();
  }

  #isLooker(): boolean {
    return Atomics.load(this.#words, LOOKER) === this.#self;
  }

  #stop(): void {
    Atomics.compareExchange(this.#words, LOOKER, this.#self, 0);
    this.#wakeAll();
  }

  #wakeAll(): void {
    Atomics.add(this.#words, WAKE_UPS, 1);
    Atomics.notify(this.#words, WAKE_UPS);
  }

  /** False: nobody else looks. True: it is time to read. */
  #hasParked(): boolean {
    const words = this.#words;
    let hasParked = false;
    for (;;) {
      const wakeUps = Atomics.load(words, WAKE_UPS);
      const looks = Atomics.load(words, LOOKS);
      const looker = Atomics.load(words, LOOKER);
      if (looker === this.#self) return false;
      if (looker === 0) return hasParked;
      hasParked = true;
      Atomics.add(words, PARKED, 1);
      const outcome = Atomics.wait(words, WAKE_UPS, wakeUps, this.#parkMs);
      Atomics.sub(words, PARKED, 1);
      if (outcome !== 'timed-out') return true;
      if (Atomics.load(words, LOOKS) !== looks) continue;
      // It waits for something: whoever looks next might do the same, and others would wait for each of them.
      if (Atomics.compareExchange(words, LOOKER, looker, 0) !== looker) continue;
      const deposals = Atomics.add(words, DEPOSALS, 1);
      Atomics.store(words, REST, Math.min(DEPOSED_REST * 2 ** deposals, CROWD_REST));
      this.#wakeAll();
      return true;
    }
  }

  #look(): void {
    const words = this.#words;
    const { workers, isPending, yieldCore } = this.#options;
    Atomics.add(words, LOOKS, 1);
    const before = Atomics.compareExchange(words, LOOKER, 0, this.#self);
    if (before === 0) this.#left = 0;
    else if (before !== this.#self) return;
    if (Atomics.load(words, PARKED) < workers - 1 && this.#left < LEFT_TO_EACH * workers) {
      this.#left++;
      return;
    }
    for (let glance = 0; glance < GLANCES; glance++) {
      if (isPending()) {
        this.#nextRest = FIRST_REST;
        if (++this.#found % STEADY === 0) Atomics.store(words, DEPOSALS, 0);
        return;
      }
      yieldCore();
    }
    this.#stop();
    this.#rest = this.#nextRest;
    this.#nextRest = Math.min(2 * this.#rest, LAST_REST);
  }
}
