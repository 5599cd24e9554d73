/**
 * Space past the end of a file that grows, taken from its file system before the writes come that need it: by another thread, or on
 * tmpfs by the engine's one while it has nothing else to do. There a call holds the file's lock for as long as it makes pages, and the
 * write that it was to help would wait for it. The file's length does not change (FALLOC_FL_KEEP_SIZE), so nothing that asks for it knows.
 *
 * It is given back when the file has not grown for a while, when the file system is full, and at close, by truncating the file
 * to the length that it has. That would cut off what is written past that length at the same time. So nobody may make the
 * file longer meanwhile:
 *
 * - The driver's own requests that can make it longer go through `grow`, or ask `mayGrow` in the turn in which they do it.
 *   Giving back begins when none is in flight, and they wait until it has ended.
 * - Workers write where entries of the translation table lead, and `lend` is asked before such an entry is made. Either some entry leads
 *   past the end of the file, or space is ahead: while there is one no space is taken, and while space is taken none is made.
 *   An entry that leads past the end because the file was cut there keeps the space from being given back.
 * - What others can write unseen (`--passthrough`) has no space ahead: see `OpenPathRequest.growsHereAlone`.
 * - Other programs are kept away by the image's lock, which is held until after `close`: nothing is given back after that.
 *
 * After SIGKILL the space stays, past the end of a sound file, until the next opening that writes closes.
 */
import { fstatSync } from 'node:fs';
import { type FileHandle, statfs } from 'node:fs/promises';
import { idleWork } from '../../src/base/idle-work.ts';
import { QuickPace } from '../../src/base/quick-pace.ts';
import { FALLOC, fallocate, fallocateAtOnce } from '../../src/os/file-ranges.ts';
import { timesWaited } from '../../src/os/process.ts';
import { AheadPolicy, LONG_STEPS, SHORT_STEPS, type Stretch } from './ahead-policy.ts';

const IDLE_MS = 2000;
/** What is free is asked for again when this much was written. */
const ASK_FREE_BYTES = 16 << 20;
/** Of a tmpfs that has to swap to have room. */
const PACE = { firstRestMs: 100, lastRestMs: 10_000, timesWaited } as const;

/** Of this process, those that hold space. */
const holders = new Set<SpaceAhead>();

/**
 * Gives back all that this process has taken ahead on a file system that is full (`device`: of stat(2)). False: there was
 * nothing. Never called by what `grow` waits for.
 */
export const giveBackSpaceOf = async (device: number): Promise<boolean> => {
  const there = [...holders].filter((ahead) => ahead.device === device);
  const given = await Promise.all(there.map((ahead) => ahead.giveBack()));
  return given.includes(true);
};

export interface SpaceAheadOptions {
  readonly handle: FileHandle;
  readonly device: number;
  /** On tmpfs: a call makes pages, and waits for no disk unless it has to swap. */
  readonly isInMemory: boolean;
  /** What the driver knows of the file's length, which is never more than it is. */
  readonly lengthBytes: () => number;
}

export class SpaceAhead {
  readonly #options: SpaceAheadOptions;
  readonly #policy: AheadPolicy;
  /** Requests in flight that may make the file longer. */
  #growers = 0;
  #noGrowers: (() => void) | null = null;
  /** Where the last byte lies that workers were ever let write. */
  #lentTo = 0;
  /** Some may be past the end. */
  #holds = false;
  #taking: Promise<void> | null = null;
  readonly #pace = new QuickPace(PACE);
  /** The next stretch is taken when this thread has nothing else to do. */
  #isOffered = false;
  #givingBack: Promise<boolean> | null = null;
  #isOff = false;
  #closed: Promise<void> | null = null;
  #hasWritten = false;
  #freeBytes = 0;
  #untilFreeIsAsked = 0;
  #idle: NodeJS.Timeout | null = null;
  #lengthWhenLooked = 0;

  constructor(options: SpaceAheadOptions) {
    this.#options = options;
    const steps = options.isInMemory ? SHORT_STEPS : LONG_STEPS;
    this.#policy = new AheadPolicy(options.lengthBytes(), steps);
  }

  get device(): number {
    return this.#options.device;
  }

  /** Whether a request that makes the file longer may do so in this turn. */
  get mayGrow(): boolean {
    return this.#givingBack === null;
  }

  /** Runs what may make the file longer; nothing in it asks for this again. Errors: those of it. */
  async grow<T>(run: () => Promise<T>): Promise<T> {
    while (this.#givingBack !== null) await this.#givingBack;
    this.#hasWritten = true;
    this.#growers++;
    try {
      return await run();
    } finally {
      if (--this.#growers === 0) this.#noGrowers?.();
    }
  }

  /** A write has ended, and the length is known. */
  written(offset: number, end: number): void {
    this.#hasWritten = true;
    this.#untilFreeIsAsked -= end - offset;
    this.#policy.written(offset, end, this.#options.lengthBytes());
    this.#takeNext();
  }

  resized(): void {
    this.#policy.resized(this.#options.lengthBytes());
  }

  /** See `DriverInstance.lend`. */
  lend(end: number): boolean {
    const isInside = end <= this.#options.lengthBytes();
    if (!isInside && (this.#holds || this.#givingBack !== null)) return false;
    this.#lentTo = Math.max(this.#lentTo, end);
    return true;
  }

  /** Whether all of it was given back now. Never throws: what stays is past the end. */
  giveBack(): Promise<boolean> {
    this.#givingBack ??= this.#giveBack().finally(() => {
      this.#givingBack = null;
    });
    return this.#givingBack;
  }

  /** Drained, and no worker has the file any more. Once: whatever comes later leaves the file alone. */
  close(): Promise<void> {
    this.#closed ??= this.#end();
    return this.#closed;
  }

  async #end(): Promise<void> {
    this.#isOff = true;
    await this.#givingBack;
    this.#lentTo = 0;
    // An engine that was killed may have left some.
    if (this.#hasWritten) this.#holds = true;
    await this.giveBack();
    this.#release();
  }

  /** What is to be taken at this moment; null for nothing. */
  #next(): Stretch | null {
    const lengthBytes = this.#options.lengthBytes();
    if (this.#isOff || this.#givingBack !== null || this.#lentTo > lengthBytes) return null;
    // One of them has the file's lock: this thread would wait for it.
    if (this.#options.isInMemory && this.#growers > 0) return null;
    // What is free is not known before the first stretch.
    const freeBytes = this.#untilFreeIsAsked > 0 ? this.#freeBytes : Number.POSITIVE_INFINITY;
    return this.#policy.next(lengthBytes, freeBytes);
  }

  #takeNext(): void {
    if (this.#taking !== null || this.#isOffered) return;
    const stretch = this.#next();
    if (stretch === null) return;
    if (this.#untilFreeIsAsked <= 0) this.#meanwhile(this.#askWhatIsFree());
    else if (!this.#options.isInMemory) this.#meanwhile(this.#take(stretch));
    else if (this.#pace.mayTry()) {
      this.#isOffered = true;
      idleWork.offer(() => this.#takeAtOnce());
    }
  }

  #meanwhile(taking: Promise<void>): void {
    this.#taking = taking.finally(() => {
      this.#taking = null;
      // The writer may be ahead of it again.
      this.#takeNext();
    });
  }

  async #askWhatIsFree(): Promise<void> {
    try {
      const { bavail, bsize } = await statfs(`/proc/self/fd/${this.#options.handle.fd}`);
      this.#freeBytes = bavail * bsize;
      this.#untilFreeIsAsked = ASK_FREE_BYTES;
    } catch {
      this.#isOff = true;
    }
  }

  async #take(stretch: Stretch): Promise<void> {
    this.#hold();
    const begun = performance.now();
    try {
      const { offset, lengthBytes } = stretch;
      await fallocate(this.#options.handle.fd, FALLOC.KEEP_SIZE, offset, lengthBytes);
      this.#policy.taken(stretch, performance.now() - begun);
    } catch {
      // A part of it may be there: it is given back when the file stops growing.
      this.#isOff = true;
    }
  }

  #takeAtOnce(): void {
    this.#isOffered = false;
    // Asked again: much may have happened since.
    const stretch = this.#next();
    if (stretch === null) return;
    if (this.#untilFreeIsAsked <= 0) {
      this.#takeNext();
      return;
    }
    this.#hold();
    const { fd } = this.#options.handle;
    const { offset, lengthBytes } = stretch;
    try {
      this.#pace.timed(() => fallocateAtOnce(fd, FALLOC.KEEP_SIZE, offset, lengthBytes));
    } catch {
      // As above.
      this.#isOff = true;
      return;
    }
    this.#policy.taken(stretch);
    this.#takeNext();
  }

  async #giveBack(): Promise<boolean> {
    await this.#taking;
    if (!this.#holds) return false;
    if (this.#growers > 0) await new Promise<void>((resolve) => (this.#noGrowers = resolve));
    this.#noGrowers = null;
    const { handle } = this.#options;
    try {
      const { size } = fstatSync(handle.fd);
      if (this.#lentTo > size) return false;
      await handle.truncate(size);
      this.#release();
      return true;
    } catch {
      this.#isOff = true;
      return false;
    }
  }

  #hold(): void {
    this.#holds = true;
    holders.add(this);
    if (this.#idle !== null) return;
    this.#lengthWhenLooked = this.#options.lengthBytes();
    this.#idle = setInterval(() => this.#look(), IDLE_MS).unref();
  }

  #release(): void {
    this.#holds = false;
    this.#untilFreeIsAsked = 0;
    this.#policy.givenBack();
    holders.delete(this);
    if (this.#idle !== null) clearInterval(this.#idle);
    this.#idle = null;
  }

  #look(): void {
    const lengthBytes = this.#options.lengthBytes();
    if (lengthBytes === this.#lengthWhenLooked) void this.giveBack();
    this.#lengthWhenLooked = lengthBytes;
  }
}
