/**
 * Looks at remote files for scans and lookups, which must not wait for a server that does not answer: whoever waits too
 * long gets an error, while the look goes on; when it has an answer after all, the catalog hears of it.
 *
 * Looks at the same thing at the same time are one. What one has found is good for a moment, for overlays that share a
 * base; and where the last one failed nobody waits at all.
 */
import { BlockError, toBlockError } from '../../src/base/block-error.ts';
import { endsWithin } from '../../src/base/bounded-wait.ts';

export interface RemoteLooksOptions {
  /** A look that somebody did not wait for has found something. Never rejects. */
  readonly answered: () => void;
  /** How long a look is waited for. */
  readonly patienceMs?: number;
}

const PATIENCE_MS = 1500;
/** What a look has found is not asked for again within. */
const FRESH_MS = 5000;
/** And a server that failed, not within. */
const RETRY_MS = 1000;
const MAX_KNOWN = 1024;

interface Look {
  running: Promise<unknown> | null;
  endedMs: number;
  found: { readonly value: unknown } | null;
  /** Why the last look failed, or that it is not waited for; null when the last one found something. */
  failure: BlockError | null;
}

export class RemoteLooks {
  readonly #options: RemoteLooksOptions;
  readonly #looks = new Map<string, Look>();

  constructor(options: RemoteLooksOptions) {
    this.#options = options;
  }

  /**
   * What `work` finds. `patient`: waits as long as it takes. Errors: those of `work`, the last one again where that was a
   * moment ago; EIO when the server takes its time.
   */
  async look<T>(
    key: string,
    work: () => Promise<T>,
    { patient }: { patient: boolean },
  ): Promise<T> {
    const look = this.#of(key);
    const sinceMs = performance.now() - look.endedMs;
    if (look.running === null) {
      if (look.found !== null && sinceMs < FRESH_MS) return look.found.value as T;
      if (!patient && look.failure !== null && sinceMs < RETRY_MS) throw look.failure;
      look.running = this.#run(look, work);
    }
    const running = look.running as Promise<T>;
    if (patient) return running;
    if (look.failure !== null) {
      running.catch(() => undefined);
      throw look.failure;
    }
    return this.#waitFor(running, look);
  }

  /** What has been found is not true any more. */
  forget(): void {
    for (const look of this.#looks.values()) look.found = null;
  }

  #of(key: string): Look {
    const known = this.#looks.get(key);
    if (known !== undefined) return known;
    if (this.#looks.size >= MAX_KNOWN) {
      for (const [other, { running }] of this.#looks)
        if (running === null) this.#looks.delete(other);
    }
    const look: Look = { running: null, endedMs: 0, found: null, failure: null };
    this.#looks.set(key, look);
    return look;
  }

  async #run<T>(look: Look, work: () => Promise<T>): Promise<T> {
    try {
      const value = await work();
      const wasGivenUp = look.failure !== null;
      look.found = { value };
      look.failure = null;
      if (wasGivenUp) this.#options.answered();
      return value;
    } catch (error) {
      look.found = null;
      look.failure = toBlockError(error);
      throw error;
    } finally {
      look.running = null;
      look.endedMs = performance.now();
    }
  }

  async #waitFor<T>(running: Promise<T>, look: Look): Promise<T> {
    const patienceMs = this.#options.patienceMs ?? PATIENCE_MS;
    if (await endsWithin(running, patienceMs)) return running;
    look.failure ??= new BlockError({ kind: 'io', message: 'its server has not answered yet' });
    throw look.failure;
  }
}
