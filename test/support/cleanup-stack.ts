/** What a test has to undo, last first: `node:test` runs its own hooks first to last, which removes before it unmounts. */
import type { Cleanup } from './scratch.ts';

export class CleanupStack implements Cleanup {
  readonly #hooks: (() => Promise<void>)[] = [];

  /** Everything registered here is undone after test `t`, also when it fails. */
  constructor(t: Cleanup) {
    t.after(() => this.#run());
  }

  after(hook: () => Promise<void>): void {
    this.#hooks.push(hook);
  }

  // Each one runs, whatever became of those before; the first error is the test's.
  async #run(): Promise<void> {
    const errors: unknown[] = [];
    for (const hook of this.#hooks.reverse()) {
      await hook().catch((error: unknown) => errors.push(error));
    }
    if (errors.length > 0) throw errors[0];
  }
}
