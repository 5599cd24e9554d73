/** What the control of jobs answers: an error with the class that QMP clients look at. */

export type QmpErrorClass =
  | 'GenericError'
  | 'CommandNotFound'
  | 'DeviceNotActive'
  | 'DeviceNotFound';

export class JobError extends Error {
  override readonly name = 'JobError';
  readonly errorClass: QmpErrorClass;

  constructor(message: string, errorClass: QmpErrorClass = 'GenericError') {
    super(message);
    this.errorClass = errorClass;
  }
}

/** The error of a job that was cancelled: QEMU has the text of ECANCELED in query-jobs. */
export const CANCELLED_TEXT = 'Operation canceled';

/** Ends the work of a job that was cancelled; thrown by its pause points, and never seen outside. */
export class JobCancelled extends Error {
  override readonly name = 'JobCancelled';
}
