/**
 * The dirty bitmaps of a node: which there are, and which record what is written to it.
 *
 * A granule is marked before its write begins, so also before its answer; a write that fails leaves it marked. Writes that the
 * data plane does alone are not seen here: a page whose granules are not all dirty in every bitmap that records has no
 * write permission there (`runAt`), its first write comes to the node, and the next fill gives the permission.
 *
 * To copy what is dirty, again and again, without missing a write:
 *
 *     1  `clear` a range: its bits are cleared and the permissions for it taken away, in the same turn
 *     2  await the node's `quiesce`: no write that the bits stood for, and none that came without marking, is in flight
 *     3  read the range
 */
import { assert } from '../base/assert.ts';
import { BlockError } from '../base/block-error.ts';
import { guestOffset } from '../base/units.ts';
import { DirtyBitmap } from './dirty-bitmap.ts';
import type { MappingChange } from './driver.ts';

/** What an image keeps of a bitmap, for the driver of the format to implement. */
export interface BitmapStorage {
  /**
   * Marks what the image keeps as out of date, durably, before the bitmap is changed in memory. Costs nothing the second
   * time. Errors: EIO.
   */
  hold(): Promise<void>;
}

/** The dirty bitmaps that an image keeps: `DriverInstance.bitmapStore`. */
export interface BitmapStore {
  /**
   * All of them, with what they hold. Of an image that is open for writing they are those of its node, of another they are
   * read now. Errors: kind invalid-image, unsupported (too large for memory); EIO.
   */
  load(): Promise<readonly TrackedBitmap[]>;
  /** Refuses what the format cannot keep. Errors: EINVAL, EROFS. */
  checkNew(name: string, granularityBytes: number): void;
  /**
   * Brings the node's persistent bitmaps to the image, and removes what the node does not have any more. Drained; closing
   * does it too. Errors: ENOSPC, EIO: what the image keeps then stays marked as out of date.
   */
  save(): Promise<void>;
}

/** What outlives an engine of a bitmap, and so has to know of a write before the write begins. Never throws. */
export interface BitmapPersistence {
  mark(start: number, lengthBytes: number): void;
  /** It is of no use any more: the node has another length. */
  discard(): void;
}

export interface TrackedBitmapFields {
  /** Null for one that only a job knows. */
  readonly name: string | null;
  readonly content: DirtyBitmap;
  readonly recording: boolean;
  /** The image keeps it when it is closed. */
  readonly persistent: boolean;
  /** Null for one that no image has yet. */
  readonly storage?: BitmapStorage | null;
  /** It was not saved the last time: it can only be removed. */
  readonly inconsistent?: boolean;
  /** Called when the node has it no more. */
  readonly dropped?: () => void;
}

export class TrackedBitmap {
  readonly name: string | null;
  readonly content: DirtyBitmap;
  readonly persistent: boolean;
  readonly inconsistent: boolean;
  readonly storage: BitmapStorage | null;
  readonly dropped: (() => void) | null;
  /** Whether writes are marked in it. Changed by `DirtyTracking`. */
  recording: boolean;
  /** False: a job marks it in place of the node, which only sees to it that each first write of a page comes there. */
  marks = true;
  /** Null for one that is kept in memory alone. */
  persistence: BitmapPersistence | null = null;
  /** The job that uses it; nobody else changes or removes it meanwhile. */
  user: string | null = null;

  constructor(fields: TrackedBitmapFields) {
    const inconsistent = fields.inconsistent ?? false;
    assert(!(fields.recording && inconsistent), 'an inconsistent bitmap records nothing');
    this.name = fields.name;
    this.content = fields.content;
    this.recording = fields.recording;
    this.persistent = fields.persistent;
    this.storage = fields.storage ?? null;
    this.inconsistent = inconsistent;
    this.dropped = fields.dropped ?? null;
  }

  /** A range is about to be written. */
  mark(start: number, lengthBytes: number): void {
    this.persistence?.mark(start, lengthBytes);
    this.content.mark(start, lengthBytes);
  }
}

/** What tracking needs of its node. */
export interface TrackedNode {
  readonly path: string;
  readonly lengthBytes: number;
  notifyMappingChanged(change: MappingChange): void;
  quiesce(): Promise<void>;
}

export interface TrackedRun {
  readonly lengthBytes: number;
  /** In every bitmap that records. */
  readonly isDirty: boolean;
}

export class DirtyTracking {
  readonly #node: TrackedNode;
  readonly #bitmaps = new Set<TrackedBitmap>();
  /** Those that record. */
  #recording: readonly DirtyBitmap[] = [];
  /** Those of them that the node marks: looked at for each write. */
  #marked: readonly TrackedBitmap[] = [];

  /** Somebody writes the node's file and is seen by nobody: a kernel with a passthrough handle. No bitmap can record. */
  isBlind = false;

  /** Called when a bitmap begins to record; resolves when nobody beside the node still writes as before. */
  readonly listeners = new Set<() => Promise<void>>();

  constructor(node: TrackedNode) {
    this.#node = node;
  }

  get bitmaps(): ReadonlySet<TrackedBitmap> {
    return this.#bitmaps;
  }

  get isRecording(): boolean {
    return this.#recording.length > 0;
  }

  /** The finest granularity of those that record; null when none does. */
  get granularityBytes(): number | null {
    if (this.#recording.length === 0) return null;
    return Math.min(...this.#recording.map((bitmap) => bitmap.granularityBytes));
  }

  find(name: string): TrackedBitmap | null {
    for (const bitmap of this.#bitmaps) if (bitmap.name === name) return bitmap;
    return null;
  }

  /** The bitmap of this name, fit to be used. Errors: ENOENT; kind busy; EINVAL when it is inconsistent. */
  get(name: string): TrackedBitmap {
    const bitmap = this.#present(name);
    this.#refuseBusy(bitmap);
    if (!bitmap.inconsistent) return bitmap;
    throw this.#error(
      'bad-request',
      `Bitmap '${name}' is inconsistent and cannot be used`,
      'remove it: it was not saved when the image was last used',
    );
  }

  /** Before the first request of the node: what its image keeps. */
  adopt(bitmap: TrackedBitmap): void {
    this.#bitmaps.add(bitmap);
    this.#settle();
  }

  /**
   * From when this resolves, every write is in the bitmap. Never awaited by a request of the node. Errors: EEXIST for a
   * name that is taken.
   */
  async add(bitmap: TrackedBitmap): Promise<void> {
    if (bitmap.name !== null && this.find(bitmap.name) !== null) {
      const message = `Bitmap already exists: ${bitmap.name}`;
      throw new BlockError({
        kind: 'bad-request',
        errno: 'EEXIST',
        message,
        path: this.#node.path,
      });
    }
    assert(
      bitmap.content.lengthBytes === this.#node.lengthBytes,
      'a bitmap is as long as its node',
    );
    if (bitmap.recording) this.#refuseBlind();
    this.#bitmaps.add(bitmap);
    this.#settle();
    if (bitmap.recording) await this.#begun();
  }

  /** One of no name, for a job. */
  async start(granularityBytes: number): Promise<TrackedBitmap> {
    const { lengthBytes } = this.#node;
    const content = new DirtyBitmap({ lengthBytes, granularityBytes });
    const bitmap = new TrackedBitmap({ name: null, content, recording: true, persistent: false });
    await this.add(bitmap);
    return bitmap;
  }

  /** Errors: ENOENT, EBUSY, EIO. */
  async remove(name: string): Promise<void> {
    const bitmap = this.#present(name);
    this.#refuseBusy(bitmap);
    await this.#change(bitmap, () => this.drop(bitmap));
  }

  /**
   * The same image is opened anew: what it does not keep itself goes along, and is given to `adopt` of the new node. Drained.
   */
  takePassing(): readonly TrackedBitmap[] {
    const passing = [...this.#bitmaps].filter((b) => !b.persistent && b.name !== null);
    for (const bitmap of passing) this.#bitmaps.delete(bitmap);
    this.#settle();
    return passing;
  }

  /** The node is closed: it has none any more. */
  closed(): void {
    for (const bitmap of [...this.#bitmaps]) this.drop(bitmap);
  }

  /** At once; what an image keeps of it goes when the image is closed. */
  drop(bitmap: TrackedBitmap): void {
    this.#bitmaps.delete(bitmap);
    this.#settle();
    bitmap.dropped?.();
  }

  /** From when this resolves, every write is in the bitmap. Never awaited by a request of the node. Errors: as `remove`. */
  async enable(bitmap: TrackedBitmap): Promise<void> {
    assert(!bitmap.inconsistent, 'an inconsistent bitmap records nothing');
    const isNew = await this.#change(bitmap, () => {
      this.#refuseBlind();
      if (bitmap.recording) return false;
      bitmap.recording = true;
      this.#settle();
      return true;
    });
    if (isNew) await this.#begun();
  }

  /** Errors: as `remove`. */
  async disable(bitmap: TrackedBitmap): Promise<void> {
    await this.#change(bitmap, () => {
      bitmap.recording = false;
      this.#settle();
    });
  }

  /** All of it. What is in flight may be in it or not. Errors: as `remove`. */
  async clearAll(bitmap: TrackedBitmap): Promise<void> {
    await this.#change(bitmap, () => this.clear(bitmap, 0, bitmap.content.lengthBytes));
  }

  /** Adds what is dirty in another. Errors: as `remove`. */
  async merge(target: TrackedBitmap, source: DirtyBitmap): Promise<void> {
    await this.#change(target, () => target.content.merge(source));
  }

  /** See the head of this file. One that an image keeps is held before. */
  clear(bitmap: TrackedBitmap, start: number, lengthBytes: number): void {
    bitmap.content.clear(start, lengthBytes);
    if (bitmap.recording && lengthBytes > 0) {
      // Who only reads is not concerned.
      const change = { start: guestOffset(start), lengthBytes, staysReadable: true };
      this.#node.notifyMappingChanged(change);
    }
  }

  /** What it holds is that of another from now on, in one turn. One that an image keeps is held before. */
  replaceContent(bitmap: TrackedBitmap, content: DirtyBitmap): void {
    this.clear(bitmap, 0, bitmap.content.lengthBytes);
    bitmap.content.merge(content);
  }

  /** Whoever writes beside the node begins anew, in units that fit the bitmaps that are left. */
  async repage(): Promise<void> {
    await Promise.all([...this.listeners].map((listener) => listener()));
  }

  /** A range is about to be written. */
  mark(start: number, lengthBytes: number): void {
    for (const bitmap of this.#marked) bitmap.mark(start, lengthBytes);
  }

  /** From now on the job that uses it marks it, as it takes part in each change (`Interposer`). */
  markedByJob(bitmap: TrackedBitmap): void {
    bitmap.marks = false;
    this.#settle();
  }

  /** What writes of the start of a range change in the bitmaps: nothing while it is dirty. */
  runAt(start: number, lengthBytes: number): TrackedRun {
    let length = lengthBytes;
    for (const bitmap of this.#recording) {
      if (!bitmap.isDirty(start)) {
        const next = bitmap.nextDirty(start, start + length);
        return { lengthBytes: next === null ? length : next.start - start, isDirty: false };
      }
      length = Math.min(length, bitmap.nextDirty(start, start + length)?.lengthBytes ?? length);
    }
    return { lengthBytes: length, isDirty: true };
  }

  /** The node has another length. Drained. */
  resize(lengthBytes: number): void {
    for (const bitmap of this.#bitmaps) {
      bitmap.persistence?.discard();
      bitmap.content.resize(lengthBytes);
    }
  }

  /**
   * Changes a bitmap when what its image keeps is marked as out of date, in the turn in which nobody else has begun to use it. Errors:
   * EIO; EBUSY and ENOENT, and nothing is changed.
   */
  async #change<T>(bitmap: TrackedBitmap, change: () => T): Promise<T> {
    const { user, storage } = bitmap;
    await storage?.hold();
    if (!this.#bitmaps.has(bitmap)) throw this.#notFound(bitmap.name);
    if (bitmap.user !== user) this.#refuseBusy(bitmap);
    return change();
  }

  // Who began before writes as before: it is waited for.
  #refuseBlind(): void {
    if (!this.isBlind) return;
    const hint = 'close it, or mount without --passthrough';
    throw this.#error('busy', 'is open in passthrough: what is written is not seen here', hint);
  }

  async #begun(): Promise<void> {
    await this.repage();
    await this.#node.quiesce();
  }

  #settle(): void {
    const recording = [...this.#bitmaps].filter((b) => b.recording);
    this.#recording = recording.map((b) => b.content);
    this.#marked = recording.filter((b) => b.marks);
  }

  #present(name: string): TrackedBitmap {
    const bitmap = this.find(name);
    if (bitmap !== null) return bitmap;
    throw this.#notFound(name);
  }

  #notFound(name: string | null): BlockError {
    return this.#error('not-found', `Dirty bitmap '${name}' not found`);
  }

  #refuseBusy({ name, user }: TrackedBitmap): void {
    if (user === null) return;
    const message = `Bitmap '${name}' is currently in use by another operation and cannot be used`;
    throw this.#error('busy', message, `wait for ${user}, or cancel it`);
  }

  #error(kind: 'bad-request' | 'busy' | 'not-found', message: string, hint?: string): BlockError {
    return new BlockError({ kind, message, hint, path: this.#node.path });
  }
}
