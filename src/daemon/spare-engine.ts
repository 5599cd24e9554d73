/** An engine that has its modules loaded, or loads them, and waits to take over. The first engine of a mount begins as one. */
import type { EngineProcess } from './engine-process.ts';

/** A mount that lives for a moment only needs none. */
const SPARE_AFTER_MS = 3000;

export class SpareEngine {
  readonly #create: () => EngineProcess;
  #engine: EngineProcess | null = null;
  #timer: NodeJS.Timeout | undefined;

  /** `first`: one that has been started already. */
  constructor(create: () => EngineProcess, first: EngineProcess | null) {
    this.#create = create;
    this.#engine = first;
  }

  /** The one that waits, which is a spare no more; null for none. */
  take(): EngineProcess | null {
    const engine = this.#engine;
    this.#engine = null;
    return engine?.isAlive === true ? engine : null;
  }

  /** Starts one in a while, unless there is one by then. */
  startLater(): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.#engine ??= this.#create();
    }, SPARE_AFTER_MS);
    this.#timer.unref();
  }

  /** A new one, which has the version that is installed now. */
  renew(): EngineProcess {
    this.drop();
    this.#engine = this.#create();
    return this.#engine;
  }

  drop(): void {
    this.#engine?.kill();
    this.#engine = null;
  }

  /** An engine has ended; perhaps this one. */
  ended(engine: EngineProcess): void {
    if (this.#engine === engine) this.#engine = null;
  }

  /** No other is started. Resolves when the one that waited has ended. */
  async close(): Promise<void> {
    clearTimeout(this.#timer);
    const engine = this.#engine;
    this.drop();
    await engine?.ended;
  }
}
