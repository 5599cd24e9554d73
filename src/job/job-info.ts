/** What clients see of a job: QEMU's names for its kinds, its events and its documents. */
import type { JobStatus } from './job-state.ts';

export type JobType = 'stream' | 'mirror' | 'commit' | 'backup';

export type IoStatus = 'ok' | 'failed' | 'nospace';

export type JobEventName =
  | 'JOB_STATUS_CHANGE'
  | 'BLOCK_JOB_READY'
  | 'BLOCK_JOB_PENDING'
  | 'BLOCK_JOB_COMPLETED'
  | 'BLOCK_JOB_CANCELLED'
  | 'BLOCK_JOB_ERROR';

export type JobEventSink = (name: JobEventName, data: Readonly<Record<string, unknown>>) => void;

/** QEMU's BlockJobInfo. */
export interface BlockJobInfo {
  readonly type: JobType;
  readonly device: string;
  readonly len: number;
  readonly offset: number;
  readonly busy: boolean;
  readonly paused: boolean;
  readonly speed: number;
  readonly 'io-status': IoStatus;
  readonly ready: boolean;
  readonly status: JobStatus;
  readonly 'auto-finalize': boolean;
  readonly 'auto-dismiss': boolean;
  readonly error?: string;
  /** Of a mirror: each write of the guest is in the target before it is answered. */
  readonly 'actively-synced'?: boolean;
}

/** QEMU's JobInfo. */
export interface JobInfo {
  readonly id: string;
  readonly type: JobType;
  readonly status: JobStatus;
  readonly 'current-progress': number;
  readonly 'total-progress': number;
  readonly error?: string;
}
