/**
 * Backup: what a view showed at one moment, copied to another image while guests go on writing. Before a block is changed
 * that was not copied yet, it is copied: the guest's write waits (copy-before-write.ts).
 *
 * The moment is `begin`, inside a drained section. Afterwards the work copies what is left, in order, as the speed limit
 * allows; with `none` nothing but what guests overwrite, until it is cancelled. A copy for a guest that fails gives the
 * moment up, and the job ends with that error; or, when that was asked for, the guest's write fails.
 */
import { BlockError, toBlockError } from '../base/block-error.ts';
import { endsWithin, GIVE_UP_MS } from '../base/bounded-wait.ts';
import { alignDown, alignUp } from '../base/range.ts';
import { guestOffset } from '../base/units.ts';
import { type Copier, CopyBeforeWrite } from '../block/copy-before-write.ts';
import { DirtyBitmap, type DirtyRange } from '../block/dirty-bitmap.ts';
import type { Node } from '../block/node.ts';
import type { View } from '../block/view.ts';
import { orAborted } from './abort.ts';
import type { BackupTarget } from './backup-target.ts';
import { Copies } from './copies.ts';
import { CopyBuffers } from './copy-buffers.ts';
import type { ErrorPolicy } from './error-policy.ts';
import { type BitmapMode, FrozenBitmap } from './frozen-bitmap.ts';
import { JobCancelled } from './job-error.ts';
import type { JobControl, JobWork } from './job-work.ts';

const COPY_BYTES = 1 << 20;
const COPIES_AT_ONCE = 6;
/** With a speed limit, pieces are as small as a tenth of a second allows. */
const PIECES_PER_SECOND = 10;
const LOOK_MS = 500;
/** Writing zeros takes no time, but guests wait for it. */
const ZERO_BYTES = 64 << 20;

/** What is to be done from a block's start on. */
interface Run {
  readonly lengthBytes: number;
  readonly what: 'skip' | 'zero' | 'copy';
}

/** What is copied: all, what the top layer has, what a bitmap says, or only what guests overwrite meanwhile. */
export type BackupSync = 'full' | 'top' | 'none' | 'bitmap';

export interface BackupOptions {
  /** For messages of its own use of the bitmap. */
  readonly jobId: string;
  readonly view: View;
  /** The view's root, which no other job changes meanwhile. */
  readonly root: Node;
  readonly target: BackupTarget;
  readonly sync: BackupSync;
  /** Needed for `bitmap`; given up with what was copied, as the mode says, with the others. */
  readonly bitmap: { readonly name: string; readonly mode: BitmapMode } | null;
  readonly onSourceError: ErrorPolicy;
  readonly onTargetError: ErrorPolicy;
  /** When the old bytes cannot be saved: the job fails, or the guest's write does. QEMU's `OnCbwError`. */
  readonly onCbwError: 'break-snapshot' | 'break-guest-write';
  /**
   * Called once, when nothing uses the target any more; or, `abandoned`, when a cancelled job has requests there that are not
   * answered: its end is not to be waited for then.
   */
  readonly ended: (outcome: { readonly abandoned: boolean }) => Promise<void>;
}

/** A failed copy, and which side of it. */
class CopyFailure extends Error {
  override readonly name = 'CopyFailure';
  readonly operation: 'read' | 'write';
  readonly error: BlockError;

  constructor(operation: 'read' | 'write', thrown: unknown) {
    super('a copy failed');
    this.operation = operation;
    this.error = toBlockError(thrown);
  }
}

export class Backup implements JobWork {
  readonly #options: BackupOptions;
  #point: CopyBeforeWrite | null = null;
  #bitmap: FrozenBitmap | null = null;
  #control: JobControl | null = null;
  #buffers: CopyBuffers | null = null;
  #failure: BlockError | null = null;
  #ignored: BlockError | null = null;
  #doneBytes = 0;
  #totalBytes = 0;
  #hasSucceeded = false;

  constructor(options: BackupOptions) {
    this.#options = options;
  }

  /** The moment that is copied. Inside a drained section of the view. Errors: those of the bitmap; nothing has begun then. */
  async begin(): Promise<void> {
    const { root, target, bitmap, jobId } = this.#options;
    if (bitmap !== null) {
      const { name, mode } = bitmap;
      this.#bitmap = await FrozenBitmap.freeze(root, name, { mode, user: `job '${jobId}'` });
    }
    const left = this.#whatIsLeft();
    for (const range of left.dirtyRanges()) this.#totalBytes += range.lengthBytes;
    this.#point = new CopyBeforeWrite({
      node: root,
      blockBytes: target.blockBytes,
      left,
      copy: (range, by) => this.#copy(range, by),
      guestFailure: (error) => this.#guestFailure(error),
      progress: (lengthBytes) => this.#done(lengthBytes),
    });
    await this.#point.begin();
  }

  /** After `begin`, when there is no job for it. */
  async abandon(): Promise<void> {
    this.#point?.end();
    if (this.#point !== null) this.#bitmap?.fail(this.#point.uncopied);
  }

  async run(control: JobControl): Promise<void> {
    const point = this.#begun();
    this.#control = control;
    control.progress(this.#doneBytes, this.#totalBytes);
    // Guests wait for nothing that is not wanted any more.
    control.signal.addEventListener('abort', () => point.end());
    if (this.#options.sync === 'none') await this.#untilCancelled(control, point);
    else await this.#copyAll(control, point);
    this.#throwFailure();
    point.end();
    await orAborted(this.#options.target.node.flush(), control.signal);
    if (control.isCancelled) throw new JobCancelled();
    if (this.#ignored !== null) throw this.#ignored;
    control.progress(this.#totalBytes, this.#totalBytes);
  }

  async prepare(): Promise<void> {
    this.#hasSucceeded = true;
  }

  async clean(): Promise<void> {
    const { root, ended } = this.#options;
    const point = this.#begun();
    point.end();
    const isCancelled = this.#control?.isCancelled === true;
    if (!isCancelled) await point.settled();
    const abandoned = isCancelled && !(await endsWithin(point.settled(), GIVE_UP_MS));
    if (this.#hasSucceeded) this.#bitmap?.succeed();
    else this.#bitmap?.fail(point.uncopied);
    // Nobody waits for it, and nothing depends on it but speed.
    void root.dirtyBitmaps.repage();
    await ended({ abandoned });
  }

  #begun(): CopyBeforeWrite {
    if (this.#point !== null) return this.#point;
    throw new BlockError({ kind: 'closed', message: 'the backup has not begun' });
  }

  #whatIsLeft(): DirtyBitmap {
    const { root, target, sync } = this.#options;
    const { lengthBytes } = root;
    const left = new DirtyBitmap({ lengthBytes, granularityBytes: target.blockBytes });
    if (sync !== 'bitmap') left.markAll();
    else if (this.#bitmap !== null) left.merge(this.#bitmap.content);
    return left;
  }

  async #copyAll(control: JobControl, point: CopyBeforeWrite): Promise<void> {
    const buffers = new CopyBuffers(control.copyMemory, COPY_BYTES);
    const copies = new Copies(() => Math.min(COPIES_AT_ONCE, buffers.copiesAtOnce));
    this.#buffers = buffers;
    try {
      for (let at = 0; ; ) {
        await control.pausePoint();
        this.#throwFailure();
        const range = point.next(at);
        if (range !== null) {
          at = await this.#step(control, point, copies, range);
          continue;
        }
        // What failed and is to be tried again lies behind.
        if (point.next(0) === null) {
          if (!point.isInFlight) break;
          await Promise.race([point.oneEnded(), point.over]);
        }
        at = 0;
      }
      await orAborted(copies.finish(), control.signal);
    } finally {
      await orAborted(copies.settled(), control.signal);
    }
    if (control.isCancelled) throw new JobCancelled();
  }

  /** Begins the first piece of what is left there; returns where it ends. */
  async #step(
    control: JobControl,
    point: CopyBeforeWrite,
    copies: Copies,
    { start, lengthBytes }: DirtyRange,
  ): Promise<number> {
    const run = await this.#lookAhead(start, lengthBytes);
    const piece = { start, lengthBytes: this.#pieceBytes(run, control.speed) };
    // A guest may change it before it is taken: then it is not left any more.
    if (run.what === 'skip') point.release(piece);
    else {
      await control.throttle(run.what === 'copy' ? piece.lengthBytes : 0);
      await orAborted(
        copies.begin(() => this.#copyPiece(control, point, piece)),
        control.signal,
      );
    }
    return start + piece.lengthBytes;
  }

  async #copyPiece(control: JobControl, point: CopyBeforeWrite, piece: DirtyRange): Promise<void> {
    // It has waited for room.
    if (control.isCancelled) return;
    try {
      await point.copy(piece, 'job');
    } catch (error) {
      // Nobody wants to know any more.
      if (control.isCancelled) return;
      if (this.#goesOn(control, error)) point.release(piece);
    }
  }

  /** Metadata that cannot be read is met again by the copy. */
  async #lookAhead(at: number, most: number): Promise<Run> {
    const { view, target } = this.#options;
    try {
      return await view.withRoot(() => this.#look(at, most));
    } catch {
      return { lengthBytes: Math.min(target.blockBytes, most), what: 'copy' };
    }
  }

  #pieceBytes({ what, lengthBytes }: Run, speed: number): number {
    if (what === 'skip') return lengthBytes;
    const { blockBytes } = this.#options.target;
    const most = what === 'zero' ? ZERO_BYTES : copyBytes(speed);
    return Math.min(lengthBytes, Math.max(blockBytes, alignDown(most, blockBytes)));
  }

  /** False: it is to be tried again, after a pause. True: it is left out. Errors: the same one, to end the job with. */
  #goesOn(control: JobControl, thrown: unknown): boolean {
    const { onSourceError, onTargetError } = this.#options;
    const { operation, error } = failureOf(thrown);
    const policy = operation === 'read' ? onSourceError : onTargetError;
    switch (control.failed(error, operation, policy)) {
      case 'report':
        throw error;
      case 'ignore':
        this.#ignored ??= error;
        return true;
      case 'stop':
        return false;
    }
  }

  #guestFailure(thrown: unknown): BlockError | null {
    const { operation, error } = failureOf(thrown);
    this.#control?.failed(error, operation, 'report');
    if (this.#options.onCbwError === 'break-snapshot') {
      this.#failure ??= error;
      return null;
    }
    const message = `what was there could not be copied before: ${error.message}`;
    return new BlockError({ kind: 'io', message, cause: error });
  }

  #throwFailure(): void {
    if (this.#failure !== null) throw this.#failure;
  }

  async #untilCancelled(control: JobControl, point: CopyBeforeWrite): Promise<void> {
    while (this.#failure === null) {
      let timer: NodeJS.Timeout | undefined;
      const look = new Promise<void>((resolve) => {
        timer = setTimeout(resolve, LOOK_MS);
      });
      await Promise.race([point.over, look]);
      clearTimeout(timer);
      await control.pausePoint();
    }
  }

  /** Of whole blocks that nobody changes meanwhile. Errors: CopyFailure. */
  async #copy({ start, lengthBytes }: DirtyRange, by: Copier): Promise<void> {
    const { target, view, root } = this.#options;
    // A job's reads are held by drained sections; a guest's request is counted already, and would wait for itself.
    const reading = <T>(read: () => Promise<T>): Promise<T> =>
      by === 'guest' ? read() : view.withRoot(read, this.#control?.signal);
    const end = start + lengthBytes;
    for (let at = start; at < end; ) {
      const run = await during('read', () => reading(() => this.#look(at, end - at)));
      if (run.what === 'zero') await during('write', () => target.zero(at, run.lengthBytes));
      if (run.what === 'copy') {
        await this.#withBuffer(run.lengthBytes, by, async (bytes) => {
          await during('read', () => reading(() => root.read(guestOffset(at), bytes)));
          await during('write', () => target.write(at, bytes));
        });
      }
      at += run.lengthBytes;
    }
  }

  // A guest waits for no copy but that of what it changes.
  #withBuffer(
    lengthBytes: number,
    by: Copier,
    copy: (bytes: Uint8Array) => Promise<void>,
  ): Promise<void> {
    if (by === 'guest' || this.#buffers === null) return copy(Buffer.allocUnsafeSlow(lengthBytes));
    return this.#buffers.with(lengthBytes, copy);
  }

  async #look(at: number, most: number): Promise<Run> {
    const { root, sync, target } = this.#options;
    const { blockBytes } = target;
    const isTop = sync === 'top';
    const status = await root.blockStatus(guestOffset(at), most, isTop ? root.backing : null);
    const whole = status.lengthBytes === most ? most : alignDown(status.lengthBytes, blockBytes);
    const isSkipped = (isTop && !status.allocated) || (status.zero && target.leavesZeroesOut);
    const what = isSkipped ? 'skip' : status.zero ? 'zero' : 'copy';
    if (what === 'copy') {
      return { lengthBytes: Math.min(alignUp(status.lengthBytes, blockBytes), most), what };
    }
    // Only a part of the block is so: it is copied as it is read.
    if (whole === 0) return { lengthBytes: Math.min(blockBytes, most), what: 'copy' };
    return { lengthBytes: whole, what };
  }

  #done(lengthBytes: number): void {
    this.#doneBytes += lengthBytes;
    this.#control?.progress(this.#doneBytes, this.#totalBytes);
  }
}

const during = async <T>(operation: 'read' | 'write', run: () => Promise<T>): Promise<T> => {
  try {
    return await run();
  } catch (error) {
    throw new CopyFailure(operation, error);
  }
};

const failureOf = (thrown: unknown): { operation: 'read' | 'write'; error: BlockError } =>
  thrown instanceof CopyFailure ? thrown : { operation: 'write', error: toBlockError(thrown) };

const copyBytes = (speed: number): number =>
  speed === 0 ? COPY_BYTES : Math.min(COPY_BYTES, speed / PIECES_PER_SECOND);
