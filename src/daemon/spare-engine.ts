/** An engine that has its modules loaded and waits to take over. */
import type { EngineProcess } from './engine-process.ts';

/** A mount that lives for a moment only needs none. */
const SPARE_AFTER_MS = 3000;

export class SpareEngine {
  readonly #create: () => EngineProcess;
  #engine: EngineProcess | null = null;
  #timer: NodeJS.Timeout | undefined;

  constructor(create: () => EngineProcess) {
    this.#create = create;
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
