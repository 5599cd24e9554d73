/**
 * Copies what is dirty in a mirror's bitmap to its target, several ranges at once, and keeps the account of it.
 *
 * A range is copied so: its bits are cleared, and with them the data plane's permissions; what writes it still is waited for;
 * it is read, and written to the target. One that fails is dirty again.
 */
import { toBlockError } from '../base/block-error.ts';
import { Parts } from '../base/parts.ts';
import { alignDown, alignUp, isAllZero } from '../base/range.ts';
import { guestOffset } from '../base/units.ts';
import type { TrackedBitmap } from '../block/dirty-tracking.ts';
import type { Node } from '../block/node.ts';
import { RangeLocks } from '../block/range-locks.ts';
import { lockOrAborted, orAborted } from './abort.ts';
import { BitmapFile } from './bitmap-file.ts';
import { Breather } from './breather.ts';
import { Copies } from './copies.ts';
import { CopyBuffers } from './copy-buffers.ts';
import { DirectCopy } from './direct-copy.ts';
import type { ErrorPolicy } from './error-policy.ts';
import { JobCancelled } from './job-error.ts';
import type { JobControl } from './job-work.ts';
import type { MirrorOptions } from './mirror-options.ts';

const COPY_BYTES = 1 << 20;
const COPIES_AT_ONCE = 16;
/** What is shorter is read and written at once: another thread would take longer. */
const LEAST_DIRECT_BYTES = 256 << 10;
/** With a speed limit, pieces are as small as a tenth of a second allows. */
const PIECES_PER_SECOND = 10;
/** Zeros need no buffer. */
const MAX_ZERO_BYTES = 1 << 30;
/** From here on it is worth asking the target whether it has zeros there already. */
const ASKED_ZERO_BYTES = 1 << 20;

/** A guest may be held so long, for what is small enough not to take longer. */
const MOMENT_MS = 100;
const MIN_MOMENT_BYTES = 64 << 10;
const MAX_MOMENT_BYTES = 4 << 20;

/** Runs something on the source: between drained sections, or in one. */
export type SourceAccess = <T>(run: (root: Node) => Promise<T>) => Promise<T>;

/** What to do about a failure now. */
export type PolicyOf = (operation: 'read' | 'write') => ErrorPolicy;

interface CopyRange {
  readonly start: number;
  readonly lengthBytes: number;
  /** What is found to be zeros, or is copied by the host, may be longer than a buffer, and needs none. */
  readonly how: 'zeros' | 'directly' | 'through memory';
}

interface CopiedRun {
  readonly start: number;
  readonly lengthBytes: number;
}

interface Piece extends CopiedRun {
  /** Null: zeros. `copied`: it is in the target already. `left`: it is dirty again. */
  readonly bytes: Uint8Array | null | 'copied' | 'left';
}

export class MirrorCopy {
  /** Held while a range is copied. */
  readonly locks = new RangeLocks();
  readonly #control: JobControl;
  readonly #options: MirrorOptions;
  readonly #bitmap: TrackedBitmap;
  readonly #policy: PolicyOf;
  readonly #copies: Copies;
  readonly #directCopies = new Copies(() => this.#direct.copiesAtOnce);
  readonly #breather = new Breather();
  readonly #buffers: CopyBuffers;
  readonly #direct: DirectCopy;
  #doneBytes = 0;
  /** The most that was reported as what there is to do. */
  #knownBytes = 0;
  #inFlightBytes = 0;
  /** Ranges that may be clean in the bitmap, and are not proven to be in the target. */
  readonly #open = new Set<CopyRange>();
  #failures = 0;
  /** How fast the last rounds were; 0 before the first. */
  #bytesPerMs = 0;

  constructor(scene: {
    readonly control: JobControl;
    readonly options: MirrorOptions;
    readonly bitmap: TrackedBitmap;
    readonly policy: PolicyOf;
  }) {
    this.#control = scene.control;
    this.#options = scene.options;
    this.#bitmap = scene.bitmap;
    this.#policy = scene.policy;
    const { bufferBytes, granularityBytes } = scene.options;
    const pieceBytes = copyBytes(0, granularityBytes);
    const atOnce = Math.floor(bufferBytes / pieceBytes);
    const most = Math.min(COPIES_AT_ONCE, Math.max(1, atOnce));
    const buffers = new CopyBuffers(scene.control.copyMemory, pieceBytes);
    this.#copies = new Copies(() => Math.min(most, buffers.copiesAtOnce));
    this.#buffers = buffers;
    this.#direct = new DirectCopy('write', scene.options.root, scene.options.target);
  }

  get dirtyBytes(): number {
    return this.#bitmap.content.dirtyBytes;
  }

  /** Copies that have failed so far; a range counts each time. */
  get failures(): number {
    return this.#failures;
  }

  /** Says how far the job is. */
  report(): void {
    const left = this.dirtyBytes + this.#inFlightBytes;
    this.#knownBytes = Math.max(this.#knownBytes, this.#doneBytes + left);
    this.#control.progress(this.#doneBytes, this.#doneBytes + left);
  }

  /**
   * Everything is copied. What there was to do never becomes less, so what is done becomes as much; what a guest has written
   * meanwhile is of what follows.
   */
  reportDone(): void {
    this.#doneBytes = Math.max(this.#doneBytes, this.#knownBytes);
    this.#control.progress(this.#doneBytes, this.#doneBytes);
  }

  /**
   * Once over everything that is dirty, as long as `mayGoOn`; nothing is in flight when it resolves. Errors: of a copy that
   * ends the job; JobCancelled, and then copies may be in flight that the target does not answer.
   */
  async pass(mayGoOn: () => boolean): Promise<void> {
    const { view } = this.#options;
    const { signal } = this.#control;
    const source: SourceAccess = (run) => view.withRoot(run, signal);
    const begun = { atMs: performance.now(), doneBytes: this.#doneBytes };
    try {
      for (let at = 0; mayGoOn(); ) {
        await this.#breather.breathe();
        await this.#control.pausePoint();
        const range = await this.#next(source, at);
        if (range === null) break;
        await this.#control.throttle(range.how === 'zeros' ? 0 : range.lengthBytes);
        await this.#begin(source, range);
        at = range.start + range.lengthBytes;
      }
      await this.#finish(signal);
    } finally {
      await this.#settled(signal);
    }
    await this.#control.pausePoint();
    this.#measure(begun);
    this.report();
  }

  #measure(begun: { readonly atMs: number; readonly doneBytes: number }): void {
    const bytes = this.#doneBytes - begun.doneBytes;
    if (bytes === 0) return;
    const rate = bytes / Math.max(1, performance.now() - begun.atMs);
    this.#bytesPerMs = Math.max(rate, this.#bytesPerMs / 2);
  }

  /** As much as the target takes in a moment that a guest may be held for, as far as is known. */
  get momentBytes(): number {
    if (this.#bytesPerMs === 0) return 0;
    const bytes = this.#bytesPerMs * MOMENT_MS;
    return Math.min(MAX_MOMENT_BYTES, Math.max(MIN_MOMENT_BYTES, bytes));
  }

  /** The same, at full speed, in a drained section of the view. */
  async drainedPass(root: Node): Promise<void> {
    const source: SourceAccess = (run) => run(root);
    const { signal } = this.#control;
    try {
      for (let at = 0; !signal.aborted; ) {
        await this.#breather.breathe();
        const range = await this.#next(source, at);
        if (range === null) break;
        await this.#begin(source, range);
        at = range.start + range.lengthBytes;
      }
      await this.#finish(signal);
    } finally {
      await this.#settled(signal);
    }
    // The guest is not held for a target that does not answer.
    if (signal.aborted) throw new JobCancelled();
    this.report();
  }

  #finish(signal: AbortSignal): Promise<unknown> {
    const all = Promise.all([this.#copies.finish(), this.#directCopies.finish()]);
    return orAborted(all, signal);
  }

  #settled(signal: AbortSignal): Promise<unknown> {
    const all = Promise.all([this.#copies.settled(), this.#directCopies.settled()]);
    return orAborted(all, signal);
  }

  /** What to copy next, from an offset on: whole granules; null for nothing. */
  async #next(source: SourceAccess, from: number): Promise<CopyRange | null> {
    const { content } = this.#bitmap;
    // What the source has gained is copied when the target has it, too.
    const found = content.nextDirty(from, this.#options.target.lengthBytes);
    if (found === null) return null;
    const { start, lengthBytes } = found;
    const pieceBytes = copyBytes(this.#control.speed, content.granularityBytes);
    if (lengthBytes <= pieceBytes) return { start, lengthBytes, how: 'through memory' };
    const zeroBytes = await source((root) => zeroRun(root, start, lengthBytes)).catch(() => 0);
    const zeros = alignDown(Math.min(zeroBytes, MAX_ZERO_BYTES), content.granularityBytes);
    if (zeros > pieceBytes) return { start, lengthBytes: zeros, how: 'zeros' };
    const reach = this.#control.speed === 0 ? this.#direct.reachBytes(start) : 0;
    if (reach > pieceBytes && reach % content.granularityBytes === 0) {
      return { start, lengthBytes: Math.min(lengthBytes, reach), how: 'directly' };
    }
    return { start, lengthBytes: pieceBytes, how: 'through memory' };
  }

  /** As soon as there is room, or nobody wants it any more. */
  async #begin(source: SourceAccess, range: CopyRange): Promise<void> {
    const copy = (): Promise<void> =>
      range.how === 'through memory'
        ? this.#buffers.with(range.lengthBytes, (buffer) => this.#copy(source, range, buffer))
        : this.#copy(source, range, null);
    const copies = range.how === 'directly' ? this.#directCopies : this.#copies;
    await orAborted(copies.begin(copy), this.#control.signal);
  }

  /** Marks what is in flight: it may never arrive, and nobody waits for it. */
  keepOpen(): void {
    for (const { start, lengthBytes } of this.#open) this.#bitmap.mark(start, lengthBytes);
  }

  async #copy(source: SourceAccess, range: CopyRange, buffer: Uint8Array | null): Promise<void> {
    const { start, lengthBytes, how } = range;
    // It has waited for room, and the source may be closed by now.
    if (this.#control.isCancelled) return;
    this.#open.add(range);
    const granuleBytes = alignUp(lengthBytes, this.#bitmap.content.granularityBytes);
    this.#inFlightBytes += granuleBytes;
    let operation: 'read' | 'write' = 'read';
    let release = (): void => undefined;
    try {
      const pieces = await source(async (root) => {
        const stretch = { start, end: start + granuleBytes };
        const lock = await lockOrAborted(this.locks, stretch, this.#control.signal);
        if (lock === null) throw new JobCancelled();
        release = () => lock.release();
        return this.#take(root, { start, lengthBytes, how }, buffer);
      });
      operation = 'write';
      for (const piece of pieces) await this.#write(piece);
      const { persistence, content } = this.#bitmap;
      if (persistence instanceof BitmapFile) persistence.clear(start, lengthBytes, content);
      this.#doneBytes += Math.max(0, granuleBytes - leftBytes(pieces));
    } catch (error) {
      this.#bitmap.mark(start, lengthBytes);
      // Nobody wants to know any more.
      if (this.#control.isCancelled) return;
      this.#failures++;
      const failure = toBlockError(error);
      const action = this.#control.failed(failure, operation, this.#policy(operation));
      if (action === 'report') throw failure;
    } finally {
      this.#open.delete(range);
      release();
      this.#inFlightBytes -= granuleBytes;
      this.report();
    }
  }

  /** Takes a range out of the bitmap, and reads it. Without a buffer, what would need one is put back. */
  async #take(
    root: Node,
    { start, lengthBytes, how }: CopyRange,
    buffer: Uint8Array | null,
  ): Promise<readonly Piece[]> {
    root.dirtyBitmaps.clear(this.#bitmap, start, lengthBytes);
    await root.quiesceChanges();
    const end = Math.min(start + lengthBytes, root.lengthBytes, this.#options.target.lengthBytes);
    const pieces = new Parts<Piece>();
    try {
      for (let at = start; at < end; ) {
        const run = await joinedRun(root, at, end);
        const piece = { start: at, lengthBytes: run.lengthBytes };
        const inRange = at - start;
        const bytes = buffer?.subarray(inRange, inRange + run.lengthBytes) ?? null;
        if (run.zero) pieces.add(Promise.resolve({ ...piece, bytes: null }));
        else if (how === 'zeros') pieces.add(Promise.resolve(this.#putBack(piece)));
        else pieces.add(this.#load(root, piece, bytes));
        at += run.lengthBytes;
      }
    } catch (error) {
      await pieces.settled();
      throw error;
    }
    return pieces.results();
  }

  async #load(root: Node, piece: CopiedRun, bytes: Uint8Array | null): Promise<Piece> {
    const { start, lengthBytes } = piece;
    const { target } = this.#options;
    if (lengthBytes >= LEAST_DIRECT_BYTES || bytes === null) {
      const { signal } = this.#control;
      // The host may hang in it: neither a guest nor the source waits for that with a job that nobody wants any more.
      const isCopied = await this.#direct.copy(root, target, { start, lengthBytes, signal });
      if (signal.aborted) throw new JobCancelled();
      if (isCopied) return { ...piece, bytes: 'copied' };
    }
    if (bytes === null) return this.#putBack(piece);
    await root.readForCopy(guestOffset(start), bytes);
    return { ...piece, bytes: isAllZero(bytes) ? null : bytes };
  }

  #putBack(piece: CopiedRun): Piece {
    this.#bitmap.mark(piece.start, piece.lengthBytes);
    return { ...piece, bytes: 'left' };
  }

  async #write({ start, lengthBytes, bytes }: Piece): Promise<void> {
    const { target, unmap } = this.#options;
    const at = guestOffset(start);
    if (bytes === 'copied' || bytes === 'left') return;
    if (bytes !== null) {
      await target.write(at, bytes);
      return;
    }
    const isLong = unmap && lengthBytes >= ASKED_ZERO_BYTES;
    if (isLong && (await zeroRun(target, start, lengthBytes)) >= lengthBytes) return;
    await target.writeZeroes(at, lengthBytes, { unmap });
  }
}

const leftBytes = (pieces: readonly Piece[]): number =>
  pieces.reduce((sum, piece) => sum + (piece.bytes === 'left' ? piece.lengthBytes : 0), 0);

interface Run {
  readonly lengthBytes: number;
  readonly zero: boolean;
}

/** How far all of it reads as zeros from an offset on, as far as the mapping tells; 0 for not at all. */
const zeroRun = async (node: Node, start: number, lengthBytes: number): Promise<number> => {
  const end = Math.min(start + lengthBytes, node.lengthBytes);
  let at = start;
  while (at < end) {
    const status = await node.blockStatus(guestOffset(at), end - at);
    if (!status.zero) break;
    at += status.lengthBytes;
  }
  return at - start;
};

/** Neighbours of one kind, wherever they lie. */
const joinedRun = async (root: Node, start: number, end: number): Promise<Run> => {
  const first = await root.blockStatus(guestOffset(start), end - start);
  let at = start + first.lengthBytes;
  while (at < end) {
    const next = await root.blockStatus(guestOffset(at), end - at);
    if (next.zero !== first.zero) break;
    at += next.lengthBytes;
  }
  return { lengthBytes: at - start, zero: first.zero };
};

const copyBytes = (speed: number, granularityBytes: number): number => {
  const limited = speed === 0 ? COPY_BYTES : Math.min(COPY_BYTES, speed / PIECES_PER_SECOND);
  return Math.max(granularityBytes, alignDown(limited, granularityBytes));
};
