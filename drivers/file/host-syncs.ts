/**
 * Syncs of a host file: its flushes, and the second descriptor that workers sync. The kernel tells a failed one once to each
 * descriptor, and the data is lost for good: whichever is told, the file remembers it for ever.
 */
import { closeSync, constants, openSync } from 'node:fs';
import type { FileHandle } from 'node:fs/promises';
import { type BlockError, toBlockError } from '../../src/base/block-error.ts';

export interface HostSyncsOptions {
  readonly handle: FileHandle;
  readonly path: string;
  /** False: flushes are ignored. */
  readonly flushes: boolean;
  /** Workers may sync it too. */
  readonly isShared: boolean;
}

export class HostSyncs {
  readonly #options: HostSyncsOptions;
  /** The first that failed. */
  #failure: BlockError | null = null;
  /** Null before the first flush, and where there is none. */
  #fd: number | null = null;

  constructor(options: HostSyncsOptions) {
    this.#options = options;
  }

  /** See `DriverInstance.syncFd`. */
  get fd(): number | undefined {
    // One that has failed has told what it had to tell: the next would succeed.
    return this.#failure === null ? (this.#fd ?? undefined) : undefined;
  }

  /** See `DriverInstance.syncHasFailed`. */
  hasFailed(error: BlockError): void {
    this.#failure ??= error;
  }

  /** See `DriverInstance.flush`. Errors: those of fdatasync(2), the first of them for ever. */
  async flush(): Promise<void> {
    const { handle, path, flushes } = this.#options;
    if (this.#failure !== null) throw this.#failure;
    if (!flushes) return;
    // Before the sync: what is lost after it is told to both.
    this.#openForWorkers();
    try {
      await handle.datasync();
    } catch (error) {
      this.#failure ??= toBlockError(error, { op: 'flush', path });
      throw this.#failure;
    }
    // Of a sync beside this one, which may have been told of what this one was to bring to the disk.
    if (this.#failure !== null) throw this.#failure;
  }

  /** Drained. The file's own descriptor is its owner's to close. */
  close(): void {
    if (this.#fd !== null) closeSync(this.#fd);
    this.#fd = null;
  }

  #openForWorkers(): void {
    const { handle, isShared } = this.#options;
    if (this.#fd !== null || !isShared) return;
    try {
      this.#fd = openSync(`/proc/self/fd/${handle.fd}`, constants.O_RDONLY);
    } catch {
      // Whoever may not open it any more does without, and asks again at the next flush.
    }
  }
}
