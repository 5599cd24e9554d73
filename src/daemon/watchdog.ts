/**
 * Tells the service manager that all is well, as long as the engine's main thread answers. While an engine is being
 * replaced the supervisor's own word counts.
 */

/** So many times within the manager's patience: one question that is answered late costs nothing. */
const QUESTIONS = 4;

export interface WatchdogOptions {
  readonly patienceMs: number;
  /** Asks the engine; false when there is none to ask. */
  readonly ask: () => boolean;
  readonly alive: () => void;
}

export class Watchdog {
  readonly #options: WatchdogOptions;
  readonly #timer: NodeJS.Timeout;
  #waiting = false;

  constructor(options: WatchdogOptions) {
    this.#options = options;
    this.#timer = setInterval(() => this.#tick(), options.patienceMs / QUESTIONS);
  }

  /** The engine has answered. */
  answered(): void {
    if (this.#waiting) this.#options.alive();
    this.#waiting = false;
  }

  close(): void {
    clearInterval(this.#timer);
  }

  #tick(): void {
    this.#waiting = this.#options.ask();
    if (!this.#waiting) this.#options.alive();
  }
}
