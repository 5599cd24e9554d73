/**
 * Mirror: copies a disk to a target while it is used, keeps the target in step, and, when asked to, lets the view go on
 * over the target.
 *
 * 1  A bitmap begins to record what the guest writes; what the mode names is marked in it (mirror-plan.ts).
 * 2  What is dirty is copied, round after round (mirror-copy.ts), until little is left; the rest is copied while the guest is
 *    held for a moment. Both are the same then: the target is flushed, and the job is ready.
 * 3  Ready, it goes on copying what the guest writes.
 * 4  At the end the guest is held once more: the rest is copied, both sides are flushed, and the view's root is swapped
 *    (complete) or not (cancel).
 *
 * A guest that writes faster than the target takes keeps 2 from its end, until its copy mode is changed (write-through.ts); in
 * 4 that is done for it.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { present } from '../base/assert.ts';
import type { BlockError } from '../base/block-error.ts';
import { toBlockError } from '../base/block-error.ts';
import { alignUp } from '../base/range.ts';
import type { TrackedBitmap } from '../block/dirty-tracking.ts';
import type { Node } from '../block/node.ts';
import { orAborted } from './abort.ts';
import { BitmapFile } from './bitmap-file.ts';
import type { ErrorPolicy } from './error-policy.ts';
import { JobCancelled, JobError } from './job-error.ts';
import type { JobChange, JobControl, JobWork } from './job-work.ts';
import { MirrorCopy } from './mirror-copy.ts';
import type { CopyMode, MirrorOptions } from './mirror-options.ts';
import { markInitial } from './mirror-plan.ts';
import { WriteThrough } from './write-through.ts';

/** Rounds at the end before the guest's writes wait for the target. */
const PATIENT_ROUNDS = 2;
/** Between rounds while ready: so many times as long as the round. */
const REST_SHARE = 4;
const LEAST_REST_MS = 100;
const MOST_REST_MS = 3000;
/** Between attempts at what has failed and is not to end the job. */
const RETRY_MS = 100;

export class Mirror implements JobWork {
  readonly #options: MirrorOptions;
  #copyMode: CopyMode;
  #control: JobControl | null = null;
  #bitmap: TrackedBitmap | null = null;
  #copy: MirrorCopy | null = null;
  #writeThrough: WriteThrough | null = null;
  /** Of a guest's write that did not reach the target. */
  #failure: BlockError | null = null;
  /** Nothing can be paused any more. */
  #isLast = false;
  /** Something has failed in the last round that is not to end the job. */
  #hasFailed = false;
  #pivoted = false;
  #succeeded = false;
  /** The target has the size of the source, and is kept so. */
  readonly #followsSize: boolean;

  constructor(options: MirrorOptions) {
    this.#options = options;
    this.#copyMode = options.copyMode;
    this.#followsSize = options.target.lengthBytes <= wholeSectors(options.root.lengthBytes);
  }

  async run(control: JobControl): Promise<void> {
    const { root, granularityBytes, kept } = this.#options;
    const resumed = kept?.resumed ?? null;
    this.#control = control;
    this.#bitmap = resumed ?? (await root.dirtyBitmaps.start(granularityBytes));
    this.#options.refuseUnseen?.();
    this.#copy = new MirrorCopy({
      control,
      options: this.#options,
      bitmap: this.#bitmap,
      policy: (operation) => this.#policy(operation),
    });
    if (this.#copyMode === 'write-blocking') this.#engage();
    await this.#fit();
    if (resumed === null) {
      await markInitial(control, this.#bitmap.content, this.#options);
      this.#bitmap.persistence = kept?.create(this.#bitmap.content) ?? null;
    }
    this.#copy.report();
    await this.#level();
    this.#copy.reportDone();
    await control.ready(() => this.#followGuest());
    await this.#approach();
    this.#isLast = true;
  }

  async prepare(): Promise<void> {
    const { view } = this.#options;
    for (;;) {
      await this.#approach();
      // Most of it is on disk when the guest is held.
      await this.#flushTarget();
      await view.withRoot((root) => root.flush());
      if (await this.#heldStill(() => this.#finish())) return;
    }
  }

  async clean(): Promise<void> {
    this.#disengage();
    try {
      await this.#keepRemaining();
    } finally {
      this.#dropBitmap();
      const abandoned = this.#control?.isCancelled === true && !this.#pivoted;
      await this.#options.ended({ pivoted: this.#pivoted, abandoned });
    }
  }

  #dropBitmap(): void {
    const { root, kept } = this.#options;
    const bitmap = this.#bitmap ?? kept?.resumed ?? null;
    if (bitmap === null) return;
    root.dirtyBitmaps.drop(bitmap);
    const { persistence } = bitmap;
    if (persistence instanceof BitmapFile && kept?.outlives() === true) persistence.close();
    else persistence?.discard();
    bitmap.persistence = null;
  }

  /** Of a mirror from a bitmap, `always`: what was not copied is in the bitmap, and nothing else. */
  async #keepRemaining(): Promise<void> {
    const { root, bitmap, bitmapMode } = this.#options;
    if (bitmap === null) return;
    try {
      const remaining = this.#bitmap;
      if (this.#succeeded || bitmapMode !== 'always' || remaining === null) return;
      this.#copy?.keepOpen();
      await root.dirtyBitmaps.clearAll(bitmap);
      // What the guest has written since is in both.
      await root.dirtyBitmaps.merge(bitmap, remaining.content);
    } finally {
      bitmap.user = null;
    }
  }

  checkComplete(): void {
    const { root, target } = this.#options;
    // One that is shorter grows before the end.
    if (target.lengthBytes <= root.lengthBytes) return;
    throw this.#otherSize();
  }

  #otherSize(): JobError {
    const { root, target } = this.#options;
    const sizes = `${target.lengthBytes} bytes, and the disk ${root.lengthBytes}`;
    return new JobError(`The target has ${sizes}: it cannot take its place`);
  }

  change({ copyMode }: JobChange): void {
    if (copyMode === this.#copyMode) return;
    if (copyMode === 'background') {
      throw new JobError(`Change to copy mode '${copyMode}' is not implemented`);
    }
    this.#copyMode = copyMode;
    if (this.#bitmap !== null) this.#engage();
  }

  info(): { readonly 'actively-synced': boolean } {
    const isEngaged = this.#writeThrough !== null && this.#control?.isPaused !== true;
    return { 'actively-synced': isEngaged && this.#copy?.dirtyBytes === 0 };
  }

  get copyMode(): CopyMode {
    return this.#copyMode;
  }

  #state(): { control: JobControl; bitmap: TrackedBitmap; copy: MirrorCopy } {
    return {
      control: present(this.#control, 'a mirror that works has its control'),
      bitmap: present(this.#bitmap, 'a mirror that works records what the guest writes'),
      copy: present(this.#copy, 'a mirror that works copies'),
    };
  }

  // A new target was made in whole sectors; where its format counts in bytes, it is as long as the disk.
  async #fit(): Promise<void> {
    const { root, target, view } = this.#options;
    if (!this.#followsSize || target.lengthBytes <= root.lengthBytes) return;
    if (target.driver.clusterBytes > 1 || target.file?.driver.remote !== undefined) return;
    await view.drained(() => this.#resizeTarget());
  }

  /** Until source and target are the same, and the target is flushed. */
  async #level(): Promise<void> {
    for (;;) {
      await this.#rounds(() => true, Number.POSITIVE_INFINITY);
      if (await this.#heldStill(async () => true)) break;
    }
    await this.#flushTarget();
  }

  /** Rounds until little is left. From `patience` rounds on, the guest's writes wait for the target. */
  async #rounds(mayGoOn: () => boolean, patience: number): Promise<void> {
    const { copy } = this.#state();
    const isMuch = (): boolean => copy.dirtyBytes > copy.momentBytes || this.#hasFailed;
    for (let round = 0; mayGoOn() && isMuch(); round++) {
      if (round >= patience) this.#engage();
      await this.#round(mayGoOn);
    }
  }

  async #round(mayGoOn: () => boolean): Promise<void> {
    const { copy, control } = this.#state();
    if (this.#hasOtherSize()) await this.#options.view.drained(() => this.#followSize());
    const failures = copy.failures;
    await copy.pass(() => mayGoOn() && this.#failure === null);
    if (this.#failure !== null) throw this.#failure;
    this.#hasFailed = copy.failures > failures;
    if (this.#hasFailed) await this.#rest(control);
  }

  async #rest({ signal }: JobControl): Promise<void> {
    await sleep(RETRY_MS, undefined, { signal }).catch(() => {
      throw new JobCancelled();
    });
  }

  /** While ready: one round, which gives way to the end. Returns how long to rest: each round takes workers their permissions. */
  async #followGuest(): Promise<number> {
    const { control, copy } = this.#state();
    const begunMs = performance.now();
    await this.#round(() => control.completion === null);
    if (copy.dirtyBytes === 0) copy.reportDone();
    const tookMs = performance.now() - begunMs;
    return Math.min(MOST_REST_MS, Math.max(LEAST_REST_MS, tookMs * REST_SHARE));
  }

  /** After the decision: as far as it goes beside the guest. */
  #approach(): Promise<void> {
    return this.#rounds(() => true, PATIENT_ROUNDS);
  }

  /** Copies the rest while the guest is held. False when something is left that has failed; else what `then` says. */
  async #heldStill(then: () => Promise<boolean>): Promise<boolean> {
    const { control, copy } = this.#state();
    await control.pausePoint();
    const failures = copy.failures;
    const isDone = await this.#options.view.drained(async () => {
      await this.#followSize();
      await copy.drainedPass(this.#options.root);
      if (this.#failure !== null) throw this.#failure;
      return copy.dirtyBytes === 0 && (await then());
    });
    this.#hasFailed = copy.failures > failures;
    return isDone;
  }

  async #finish(): Promise<boolean> {
    const { root, bitmap, bitmapMode, pivot } = this.#options;
    const { control, copy } = this.#state();
    await root.flush();
    await this.#flushTarget();
    // The last rounds may have counted what was about to be copied twice.
    copy.reportDone();
    if (bitmap !== null && bitmapMode !== 'never') await root.dirtyBitmaps.clearAll(bitmap);
    if (control.completion === 'complete') {
      if (this.#options.target.lengthBytes !== root.lengthBytes) throw this.#otherSize();
      await pivot();
      this.#pivoted = true;
    }
    // What the guest writes next is not of this moment.
    this.#disengage();
    this.#succeeded = true;
    return true;
  }

  // What a failed flush has lost nobody knows: it is never tried again.
  async #flushTarget(): Promise<void> {
    const { control } = this.#state();
    try {
      await orAborted(this.#options.target.flush(), control.signal);
    } catch (error) {
      const failure = toBlockError(error);
      control.failed(failure, 'write', 'report');
      throw failure;
    }
    if (control.isCancelled) throw new JobCancelled();
  }

  /** Formats that count in sectors round up. */
  #hasOtherSize(): boolean {
    const { root, target } = this.#options;
    const isRight =
      target.lengthBytes >= root.lengthBytes &&
      target.lengthBytes <= wholeSectors(root.lengthBytes);
    return this.#followsSize && !isRight;
  }

  /** Drained. */
  async #followSize(): Promise<void> {
    if (this.#hasOtherSize()) await this.#resizeTarget();
  }

  // The guest is not held for a target that does not answer.
  async #resizeTarget(): Promise<void> {
    const { root, target } = this.#options;
    const { control } = this.#state();
    await orAborted(target.resize(root.lengthBytes), control.signal);
    if (control.isCancelled) throw new JobCancelled();
  }

  #policy(operation: 'read' | 'write'): ErrorPolicy {
    const { onSourceError, onTargetError } = this.#options;
    const policy = operation === 'read' ? onSourceError : onTargetError;
    return this.#isLast && policy !== 'ignore' ? 'report' : policy;
  }

  #engage(): void {
    const { root, target, unmap } = this.#options;
    const { control, bitmap, copy } = this.#state();
    if (this.#writeThrough !== null) return;
    this.#copyMode = 'write-blocking';
    root.dirtyBitmaps.markedByJob(bitmap);
    this.#writeThrough = new WriteThrough({
      target,
      bitmap,
      locks: copy.locks,
      unmap,
      signal: control.signal,
      isActive: () => this.#failure === null && !control.isPaused && !control.isCancelled,
      failed: (error) => {
        const action = control.failed(error, 'write', this.#policy('write'));
        if (action === 'report') this.#failure ??= error;
      },
    });
    root.interposers.push(this.#writeThrough);
  }

  #disengage(): void {
    const { interposers }: Node = this.#options.root;
    const index = this.#writeThrough === null ? -1 : interposers.indexOf(this.#writeThrough);
    if (index >= 0) interposers.splice(index, 1);
    this.#writeThrough = null;
  }
}

const SECTOR_BYTES = 512;

const wholeSectors = (bytes: number): number => alignUp(bytes, SECTOR_BYTES);
