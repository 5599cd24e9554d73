/**
 * A job: work in the background with QEMU's states, verbs and events.
 *
 * It owns the state machine, pausing, the speed limit, the progress and the outcome. What is done is a `JobWork`, which comes
 * to a pause point between its steps: there it waits while paused, and ends when cancelled.
 *
 * Concurrency: verbs may come at any moment. They change what the job wants; the work sees it at its next pause point.
 */
import { setMaxListeners } from 'node:events';
import { BlockError, toBlockError } from '../base/block-error.ts';
import { ChangeWaits } from './change-waits.ts';
import type { CopyMemory } from './copy-memory.ts';
import { actionOf, type ErrorAction, type ErrorPolicy } from './error-policy.ts';
import { CANCELLED_TEXT, JobCancelled, JobError } from './job-error.ts';
import type { BlockJobInfo, IoStatus, JobEventSink, JobInfo, JobType } from './job-info.ts';
import { assertFollows, isAllowed, isAtWork, type JobStatus, type JobVerb } from './job-state.ts';
import type { JobResult } from './job-store.ts';
import type { JobChange, JobControl, JobWork } from './job-work.ts';
import { RateLimit } from './rate-limit.ts';

export interface JobFields {
  readonly id: string;
  readonly type: JobType;
  readonly speed: number;
  readonly autoFinalize: boolean;
  readonly autoDismiss: boolean;
  readonly work: JobWork;
  /** Of all jobs of the mount. */
  readonly copyMemory: CopyMemory;
  readonly emit: JobEventSink;
}

export class Job implements JobControl {
  readonly id: string;
  readonly type: JobType;
  readonly autoDismiss: boolean;
  readonly autoFinalize: boolean;
  readonly copyMemory: CopyMemory;
  readonly #work: JobWork;
  readonly #emit: JobEventSink;
  readonly #limit = new RateLimit();
  readonly #abort = new AbortController();
  readonly #waits = new ChangeWaits();
  readonly #concluded: Promise<void>;
  #resolveConcluded: () => void = () => undefined;
  /** Called when the job goes to `null`, and whenever what should survive an engine has changed. */
  onDismissed: () => void = () => undefined;
  onChanged: () => void = () => undefined;
  /** Resolves when what `onChanged` has told survives the engine, or has been waited for long enough (`JobList`). Never throws. */
  kept: () => Promise<void> = async () => undefined;
  #status: JobStatus = 'undefined';
  #userPaused = false;
  #cancelled = false;
  #completion: 'complete' | 'stop' | null = null;
  #finalized = false;
  #offset = 0;
  #lengthBytes = 0;
  #ioStatus: IoStatus = 'ok';
  #error: string | null = null;
  /** What came of it, when that is known: it does not change any more. */
  #result: JobResult | null = null;

  constructor(fields: JobFields) {
    this.id = fields.id;
    this.type = fields.type;
    this.autoFinalize = fields.autoFinalize;
    this.autoDismiss = fields.autoDismiss;
    this.copyMemory = fields.copyMemory;
    this.#work = fields.work;
    this.#emit = fields.emit;
    this.#limit.bytesPerSecond = fields.speed;
    this.#concluded = new Promise((resolve) => {
      this.#resolveConcluded = resolve;
    });
    // One for each copy in flight, and more: Node warns of a leak when there are eleven.
    setMaxListeners(0, this.#abort.signal);
    this.#to('created');
  }

  get status(): JobStatus {
    return this.#status;
  }

  get speed(): number {
    return this.#limit.bytesPerSecond;
  }

  /** Asked for by a person, or by a stop after an error: what a later engine keeps. */
  get isPaused(): boolean {
    return this.#userPaused;
  }

  get error(): string | null {
    return this.#error;
  }

  get isCancelled(): boolean {
    return this.#cancelled;
  }

  get completion(): 'complete' | 'stop' | null {
    return this.#completion;
  }

  get signal(): AbortSignal {
    return this.#abort.signal;
  }

  /** Resolves when the job has ended, whatever came of it. */
  get concluded(): Promise<void> {
    return this.#concluded;
  }

  /** A job that ended under an earlier engine, and was not dismissed. Instead of `start`; sends no events. */
  restoreConcluded(result: JobResult): void {
    this.#offset = result.offset;
    this.#lengthBytes = result.lengthBytes;
    this.#error = result.error;
    this.#result = result;
    this.#status = 'concluded';
    this.#resolveConcluded();
  }

  /** What came of it; null while that is not known. */
  get result(): JobResult | null {
    return this.#result;
  }

  /** Runs the work. Never throws. Called once. */
  async start(): Promise<void> {
    this.#to('running');
    let failure: unknown = null;
    try {
      await this.pausePoint();
      await this.#work.run(this);
      await this.#finish();
    } catch (error) {
      failure = error;
      this.#to('aborting');
    }
    await this.#work.clean?.().catch((error: unknown) => {
      failure ??= error;
    });
    const isCancel = this.#decide(failure);
    // Who hears of the result finds it again, whenever the engine dies; and a job that has ended is not started again then.
    this.onChanged();
    await this.kept();
    this.#conclude(isCancel);
  }

  blockJobInfo(): BlockJobInfo {
    return {
      type: this.type,
      device: this.id,
      len: this.#lengthBytes,
      offset: this.#offset,
      busy: isAtWork(this.#status) && !this.#waits.isAsleep,
      paused: this.#userPaused,
      speed: this.speed,
      'io-status': this.#ioStatus,
      ready: this.#status === 'ready' || this.#status === 'standby',
      status: this.#status,
      'auto-finalize': this.autoFinalize,
      'auto-dismiss': this.autoDismiss,
      ...(this.#error === null ? {} : { error: this.#error }),
      ...this.#work.info?.(),
    };
  }

  jobInfo(): JobInfo {
    return {
      id: this.id,
      type: this.type,
      status: this.#status,
      'current-progress': this.#offset,
      'total-progress': this.#lengthBytes,
      ...(this.#error === null ? {} : { error: this.#error }),
    };
  }

  /** Errors: JobError when already paused, or in a state without that verb. So with all verbs. */
  pause(): void {
    this.#allow('pause');
    if (this.#userPaused) throw new JobError('Job is already paused');
    this.#userPaused = true;
    this.#changed();
  }

  resume(): void {
    this.#allow('resume');
    if (!this.#userPaused) throw new JobError("Can't resume a job that was not paused");
    this.#ioStatus = 'ok';
    this.#userPaused = false;
    this.#changed();
  }

  /** Bytes a second; 0 for no limit. */
  setSpeed(bytesPerSecond: number): void {
    this.#allow('set-speed');
    if (!Number.isSafeInteger(bytesPerSecond) || bytesPerSecond < 0) {
      throw new JobError("Parameter 'speed' expects a non-negative value");
    }
    this.#limit.bytesPerSecond = bytesPerSecond;
    this.#changed();
  }

  /** Not forced, a job that is ready ends as completed, without its pivot. */
  cancel({ force }: { readonly force: boolean }): void {
    this.#allow('cancel');
    const isReady = this.#status === 'ready' || this.#status === 'standby';
    if (isReady && !force) this.#completion = 'stop';
    else this.#cancelled = true;
    this.#userPaused = false;
    this.#changed();
    if (this.#cancelled) this.#abort.abort(new JobCancelled());
  }

  complete(): void {
    this.#allow('complete');
    if (this.#userPaused || this.#cancelled || this.#completion !== null) {
      throw new JobError(`The active block job '${this.id}' cannot be completed`);
    }
    this.#work.checkComplete?.();
    this.#completion = 'complete';
    this.#changed();
  }

  /** Errors: as with all verbs; and for a kind of job that has nothing to change. */
  change(options: JobChange): void {
    this.#allow('change');
    if (this.#work.change === undefined) {
      throw new JobError(`Job type ${this.type} does not support change`);
    }
    this.#work.change(options);
    this.#changed();
  }

  finalize(): void {
    this.#allow('finalize');
    this.#finalized = true;
    this.#changed();
  }

  dismiss(): void {
    this.#allow('dismiss');
    this.#to('null');
    this.onDismissed();
  }

  // Several parts of the work may wait here at once.
  async pausePoint(): Promise<void> {
    while (this.#userPaused && !this.#cancelled) {
      if (this.#status === 'running') this.#to('paused');
      else if (this.#status === 'ready') this.#to('standby');
      await this.#waits.untilChanged(null);
    }
    if (this.#status === 'paused') this.#to('running');
    else if (this.#status === 'standby') this.#to('ready');
    if (this.#cancelled) throw new JobCancelled();
  }

  async throttle(bytes: number): Promise<void> {
    for (;;) {
      await this.pausePoint();
      const delayMs = this.#limit.delayMs();
      if (delayMs === 0) break;
      await this.#waits.untilChanged(delayMs);
    }
    this.#limit.use(bytes);
  }

  progress(offset: number, lengthBytes: number): void {
    if (this.#result !== null) return;
    this.#offset = Math.max(this.#offset, offset);
    this.#lengthBytes = Math.max(this.#lengthBytes, lengthBytes, this.#offset);
  }

  failed(error: BlockError, operation: 'read' | 'write', policy: ErrorPolicy): ErrorAction {
    const isFull = error.kind === 'no-space';
    const action = actionOf(policy, isFull);
    this.#emit('BLOCK_JOB_ERROR', { device: this.id, operation, action });
    if (action === 'stop') {
      this.#ioStatus = isFull ? 'nospace' : 'failed';
      this.#userPaused = true;
      this.#changed();
    }
    return action;
  }

  async ready(whileReady: () => Promise<number>): Promise<'complete' | 'stop'> {
    this.#to('ready');
    this.#emit('BLOCK_JOB_READY', this.#eventData());
    while (this.#completion === null) {
      await this.pausePoint();
      const restMs = await whileReady();
      if (this.#completion === null) await this.#waits.untilChanged(restMs);
    }
    if (this.#cancelled) throw new JobCancelled();
    return this.#completion;
  }

  async #finish(): Promise<void> {
    await this.pausePoint();
    this.#to('waiting');
    this.#to('pending');
    if (!this.autoFinalize) {
      this.#emit('BLOCK_JOB_PENDING', { type: this.type, id: this.id });
      while (!this.#finalized && !this.#cancelled) await this.#waits.untilChanged(null);
    }
    if (this.#cancelled) throw new JobCancelled();
    await this.#work.prepare?.();
  }

  /** Whether it was cancelled. */
  #decide(failure: unknown): boolean {
    const isCancel = this.#cancelled && failure instanceof JobCancelled;
    if (failure !== null && !isCancel) this.#error = describe(failure);
    if (isCancel) this.#error = CANCELLED_TEXT;
    this.#result = { error: this.#error, offset: this.#offset, lengthBytes: this.#lengthBytes };
    return isCancel;
  }

  #conclude(isCancel: boolean): void {
    const data = this.#eventData();
    if (isCancel) this.#emit('BLOCK_JOB_CANCELLED', data);
    else
      this.#emit(
        'BLOCK_JOB_COMPLETED',
        this.#error === null ? data : { ...data, error: this.#error },
      );
    this.#to('concluded');
    this.#resolveConcluded();
    if (this.autoDismiss) this.dismiss();
  }

  #eventData(): Record<string, unknown> {
    return {
      type: this.type,
      device: this.id,
      len: this.#lengthBytes,
      offset: this.#offset,
      speed: this.speed,
    };
  }

  #allow(verb: JobVerb): void {
    // Its result is known, and nobody was told yet.
    const isBeingKept = this.#result !== null && this.#status !== 'concluded';
    if (isAllowed(verb, this.#status) && !isBeingKept) return;
    const what = `Job '${this.id}' in state '${this.#status}' cannot accept command verb '${verb}'`;
    throw new JobError(isBeingKept ? `${what}: it has ended, and its result is being kept` : what);
  }

  #to(status: JobStatus): void {
    assertFollows(this.#status, status);
    this.#status = status;
    this.#emit('JOB_STATUS_CHANGE', { id: this.id, status });
    this.onChanged();
  }

  #changed(): void {
    this.#waits.wake();
    this.onChanged();
  }
}

const describe = (failure: unknown): string =>
  failure instanceof BlockError || !(failure instanceof JobError)
    ? toBlockError(failure).describe()
    : failure.message;
