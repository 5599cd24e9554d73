/** The states of a job and what may be asked of it in each: QEMU's tables, of which clients know the names. */
import { assert } from '../base/assert.ts';

export type JobStatus =
  | 'undefined'
  | 'created'
  | 'running'
  | 'paused'
  | 'ready'
  | 'standby'
  | 'waiting'
  | 'pending'
  | 'aborting'
  | 'concluded'
  | 'null';

export type JobVerb =
  | 'cancel'
  | 'pause'
  | 'resume'
  | 'set-speed'
  | 'complete'
  | 'finalize'
  | 'dismiss'
  | 'change';

const NEXT: Readonly<Record<JobStatus, readonly JobStatus[]>> = {
  undefined: ['created'],
  created: ['running', 'aborting', 'null'],
  running: ['paused', 'ready', 'waiting', 'aborting'],
  paused: ['running'],
  ready: ['standby', 'waiting', 'aborting'],
  standby: ['ready'],
  waiting: ['pending', 'aborting'],
  pending: ['aborting', 'concluded'],
  aborting: ['aborting', 'concluded'],
  concluded: ['null'],
  null: [],
};

const WHILE_AT_WORK: readonly JobStatus[] = ['created', 'running', 'paused', 'ready', 'standby'];

const ALLOWED: Readonly<Record<JobVerb, readonly JobStatus[]>> = {
  cancel: [...WHILE_AT_WORK, 'waiting', 'pending'],
  pause: WHILE_AT_WORK,
  resume: WHILE_AT_WORK,
  'set-speed': WHILE_AT_WORK,
  change: WHILE_AT_WORK,
  complete: ['ready', 'standby'],
  finalize: ['pending'],
  dismiss: ['concluded'],
};

/** Whether QEMU's table has the step. */
export const canFollow = (from: JobStatus, to: JobStatus): boolean => NEXT[from].includes(to);

export const assertFollows = (from: JobStatus, to: JobStatus): void =>
  assert(canFollow(from, to), `a job goes from ${from} to ${to}`);

export const isAllowed = (verb: JobVerb, status: JobStatus): boolean =>
  ALLOWED[verb].includes(status);

/** Where the work itself runs, or can go on running. */
export const isAtWork = (status: JobStatus): boolean => WHILE_AT_WORK.includes(status);
