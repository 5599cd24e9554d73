/** What a kind of job implements, and what it is given to work with. */
import type { BlockError } from '../base/block-error.ts';
import type { CopyMemory } from './copy-memory.ts';
import type { ErrorAction, ErrorPolicy } from './error-policy.ts';

/** What the work is given. */
export interface JobControl {
  /** Waits while the job is paused. Errors: JobCancelled. */
  pausePoint(): Promise<void>;
  /** As `pausePoint`, and waits until the speed limit allows these bytes. Errors: JobCancelled. */
  throttle(bytes: number): Promise<void>;
  /** Bytes that are done, and that there are; neither ever goes backwards, nor changes when the job's result is known. */
  progress(offset: number, lengthBytes: number): void;
  /** Says what comes of a failed read or write: with `stop` the job pauses, and the work tries again afterwards. */
  failed(error: BlockError, operation: 'read' | 'write', policy: ErrorPolicy): ErrorAction;
  /**
   * Everything is copied: waits for `complete` (pivot) or for a cancel that is not forced (stop). Meanwhile `whileReady` is done
   * again and again; it says after how many ms. Errors: JobCancelled.
   */
  ready(whileReady: () => Promise<number>): Promise<'complete' | 'stop'>;
  readonly isCancelled: boolean;
  /** What a person has asked for that is ready: its pivot, or its end without one. Nothing else is begun then. */
  readonly completion: 'complete' | 'stop' | null;
  /** A person, or a stop after an error, lets it wait. */
  readonly isPaused: boolean;
  /** Bytes a second that are allowed; 0 for any. */
  readonly speed: number;
  /** What copies in flight may take, with those of other jobs. */
  readonly copyMemory: CopyMemory;
  /** Aborted when the job is cancelled: for waits of the work's own. */
  readonly signal: AbortSignal;
}

export interface JobWork {
  /** All of the work. Errors end the job with that error. */
  run(control: JobControl): Promise<void>;
  /** The change that makes the result count, after `finalize`. Errors: the job is aborted. */
  prepare?(): Promise<void>;
  /** Gives back what the job has held; called once whatever came of it. */
  clean?(): Promise<void>;
  /** Before `complete` is taken. Errors: JobError with the reason why it cannot be. */
  checkComplete?(): void;
  /** `block-job-change`. Errors: JobError for what cannot be changed. */
  change?(options: JobChange): void;
  /** What this kind of job has beside BlockJobInfo's common fields. */
  info?(): { readonly 'actively-synced'?: boolean };
}

export interface JobChange {
  readonly copyMode: 'background' | 'write-blocking';
}
