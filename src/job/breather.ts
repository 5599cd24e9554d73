/**
 * Lets the event loop go round: short I/O on cached pages is done at once, so a loop of it that only ever awaits what is done
 * already would keep guests and the control socket waiting until its end.
 */
import { setImmediate } from 'node:timers/promises';

const LONGEST_MS = 0.5;

export class Breather {
  #sinceMs = performance.now();

  /** Between two steps of the loop. */
  async breathe(): Promise<void> {
    if (performance.now() - this.#sinceMs < LONGEST_MS) return;
    await setImmediate();
    this.#sinceMs = performance.now();
  }
}
