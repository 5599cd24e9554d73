/**
 * When scans of the sources run: one at a time, as soon as somebody looks after a change. A lookup waits for it, within a
 * bound, so that a file which a program has just made is there when that program looks.
 */
import { toBlockError } from '../../src/base/block-error.ts';
import { endsWithin } from '../../src/base/bounded-wait.ts';
import type { Log } from '../../src/base/log.ts';
import type { BackgroundWork } from './background.ts';
import type { SourceWatch } from './source-watch.ts';

/** How long a lookup waits for a scan before it answers from what is known, in ms. */
const SCAN_WAIT_MS = 2000;

export interface ScanScheduleOptions {
  readonly watch: SourceWatch;
  readonly background: BackgroundWork;
  readonly log: Log;
  /** Called one at a time. */
  readonly scan: () => Promise<void>;
  /** Drops what is known of images on servers. */
  readonly forgetRemote: () => void;
}

export class ScanSchedule {
  readonly #options: ScanScheduleOptions;
  #scanning: Promise<void> | null = null;
  #closed = false;

  constructor(options: ScanScheduleOptions) {
    this.#options = options;
  }

  /** A caller during a scan waits for that one. Errors: those of `scan`, after which another one is needed. */
  async rescan(): Promise<void> {
    this.#scanning ??= this.#scan().finally(() => {
      this.#scanning = null;
    });
    return this.#scanning;
  }

  /** A scan that begins after this call: what a running one has read may be older than the change that the caller has made. */
  async rescanNow(): Promise<void> {
    await this.#ended();
    await this.rescan();
  }

  /** Something has changed that sources do not tell; nobody waits. */
  rescanSoon(): void {
    if (this.#closed) return;
    const { watch, background } = this.#options;
    watch.markDirty();
    void background.add('scan', this.#scanIfChanged());
  }

  /**
   * What has changed by now is seen when it returns, unless that takes too long: a source directory on a server that does not
   * answer must not stop the views that are known. Never rejects: an error is logged.
   */
  async refresh(): Promise<void> {
    const fresh = this.#scanIfChanged().catch((error: unknown) => {
      this.#options.log.warning('scan', toBlockError(error).describe());
    });
    await endsWithin(fresh, SCAN_WAIT_MS);
  }

  /** A server has said that it has other content now. As `refresh`. */
  async changedRemotely(): Promise<void> {
    this.#options.forgetRemote();
    this.#options.watch.markDirty();
    await this.refresh();
  }

  /** No scan begins after this call; none runs when it returns. */
  async close(): Promise<void> {
    this.#closed = true;
    await this.#ended();
  }

  async #ended(): Promise<void> {
    await this.#scanning?.catch(() => undefined);
  }

  async #scan(): Promise<void> {
    if (this.#closed) return;
    const { watch, scan } = this.#options;
    await watch.beginScan();
    try {
      await scan();
    } catch (error) {
      watch.markDirty();
      throw error;
    }
  }

  async #scanIfChanged(): Promise<void> {
    await this.#ended();
    const { watch } = this.#options;
    if (!this.#closed && (await watch.hasChanged({ thorough: false }))) await this.rescan();
  }
}
