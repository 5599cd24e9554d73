/** How long the next engine waits after a death: not at all after the first, longer and longer after further deaths in short order. */

/** From the second death in a row on, an engine that died sooner than this after its start is not followed at once. */
export const HEALTHY_AFTER_MS = 5000;
const FIRST_RESTART_MS = 100;
const LAST_RESTART_MS = 10_000;

export class RestartPace {
  /** In short order. */
  #deaths = 0;

  /** In ms. `isExplained`: what the engine has died of will not happen again. */
  pauseAfter(livedMs: number, { isExplained }: { readonly isExplained: boolean }): number {
    this.#deaths = livedMs > HEALTHY_AFTER_MS ? 1 : this.#deaths + 1;
    if (this.#deaths === 1 || isExplained) return 0;
    return Math.min(LAST_RESTART_MS, FIRST_RESTART_MS * 2 ** this.#deaths);
  }
}
