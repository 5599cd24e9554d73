/**
 * When checkpoints run: one at a time; callers that come while one runs share the next one, because the running one may
 * have taken its snapshot before their change.
 */
export interface CheckpointScheduleOptions {
  readonly run: () => Promise<void>;
  /** The longest time that a change waits for a checkpoint by itself, in ms. */
  readonly maxDelayMs: number;
  /** A checkpoint that nobody waits for has failed. */
  readonly failed: (error: unknown) => void;
}

export class CheckpointSchedule {
  readonly #options: CheckpointScheduleOptions;
  #running: Promise<void> | null = null;
  #next: Promise<void> | null = null;
  #timer: NodeJS.Timeout | null = null;

  constructor(options: CheckpointScheduleOptions) {
    this.#options = options;
  }

  /** A checkpoint that begins after this call. Errors: those of `run`. */
  request(): Promise<void> {
    this.#clearTimer();
    // One that is promised begins some turns after the one before it has ended: then neither runs.
    if (this.#next !== null) return this.#next;
    if (this.#running === null) return this.#start();
    this.#next = this.#running
      .catch(() => undefined)
      .then(() => {
        this.#next = null;
        return this.#start();
      });
    return this.#next;
  }

  /** Something has changed: there will be a checkpoint within `maxDelayMs`. */
  changed(): void {
    if (this.#timer !== null || this.#next !== null) return;
    this.#timer = setTimeout(() => this.requestInBackground(), this.#options.maxDelayMs);
    this.#timer.unref();
  }

  /** A checkpoint soon; nobody waits for it. */
  requestInBackground(): void {
    this.request().catch(this.#options.failed);
  }

  /** No further checkpoint starts by itself; resolves when none runs. */
  async close(): Promise<void> {
    this.#clearTimer();
    await this.#next?.catch(() => undefined);
    await this.#running?.catch(() => undefined);
    this.#clearTimer();
  }

  #start(): Promise<void> {
    const running = this.#options.run().finally(() => {
      this.#running = null;
    });
    this.#running = running;
    return running;
  }

  #clearTimer(): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
  }
}
