/** Work that nobody waits for but the end: its failures are logged. */
import { toBlockError } from '../../src/base/block-error.ts';
import type { Log } from '../../src/base/log.ts';

export class BackgroundWork {
  readonly #log: Log;
  readonly #tasks = new Set<Promise<void>>();

  constructor(log: Log) {
    this.#log = log;
  }

  /** Never rejects: an error is logged as one of `subject`. */
  add(subject: string, work: Promise<void>): Promise<void> {
    const task = work
      .catch((error: unknown) => this.#log.error(subject, toBlockError(error).describe()))
      .finally(() => this.#tasks.delete(task));
    this.#tasks.add(task);
    return task;
  }

  /** When all that has been added by now has ended. */
  async settled(): Promise<void> {
    await Promise.all(this.#tasks);
  }
}
