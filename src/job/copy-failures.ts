/** What becomes of reads and writes of a job that fail: the job's one error policy, and what it has left out by it. */
import { toBlockError } from '../base/block-error.ts';
import type { ErrorPolicy } from './error-policy.ts';
import type { JobControl } from './job-work.ts';

export class CopyFailures {
  readonly #policy: ErrorPolicy;
  /** The first one that was passed over. */
  #ignored: unknown = null;

  constructor(policy: ErrorPolicy) {
    this.#policy = policy;
  }

  /** True: try again, after a pause. False: leave it out. Errors: the same one, to end the job with; JobCancelled. */
  async goesOn(control: JobControl, error: unknown, operation: 'read' | 'write'): Promise<boolean> {
    const failure = toBlockError(error);
    switch (control.failed(failure, operation, this.#policy)) {
      case 'report':
        throw failure;
      case 'ignore':
        this.#ignored ??= failure;
        return false;
      case 'stop':
        await control.pausePoint();
        return true;
    }
  }

  /** A job that has left something out ends with the error of that. */
  throwIgnored(): void {
    if (this.#ignored !== null) throw this.#ignored;
  }
}
