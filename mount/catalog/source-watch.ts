/**
 * Notices that sources have changed, by the times of their directories: at every lookup, and once a second so that a
 * kernel hears of a removal that nobody looks for. No inotify: it reports every write to an image that is open here, and
 * those come by the ten thousand a second, on the thread that takes every decision.
 */
import { tryStatHostFile } from './host-file.ts';
import type { Source } from './listing.ts';

const POLL_MS = 1000;

/**
 * A directory whose time is as young as this when it is listed may change again without its time telling: the clock of
 * file systems has ticks (4 ms on Linux with HZ=250).
 */
const CLOCK_TICK_MS = 20;

/** Of the files that are no images, so many are watched for becoming one; those written last. */
const MAX_FOLLOWED = 256;
/** A file that was written so lately may still be on its way to an image: lookups look at it, not only the poll. */
const YOUNG_MS = 5000;

/** A single file is the same while its inode is; what writes to it is mostly we. */
type Aspect = 'stamp' | 'identity';

export interface SourceWatchOptions {
  readonly sources: readonly Source[];
  /** Whether a file that was none is an image now. */
  readonly isImage: (path: string) => Promise<boolean>;
  /** Something has changed; not called again while its promise is pending. Never rejects. */
  readonly changed: () => Promise<void>;
}

export class SourceWatch {
  readonly #options: SourceWatchOptions;
  /** What was there at the last scan; '' for what was not. */
  #seen = new Map<string, { readonly aspect: Aspect; readonly value: string }>();
  /** Stamps of the files that were no images; they have no say in the times of their directory. */
  readonly #followed = new Map<string, { stamp: string; youngUntilMs: number }>();
  #dirty = true;
  #polling = false;
  readonly #timer: NodeJS.Timeout;

  constructor(options: SourceWatchOptions) {
    this.#options = options;
    this.#timer = setInterval(() => void this.#poll(), POLL_MS).unref();
  }

  /** A change is known, or suspected, that no scan has seen. */
  markDirty(): void {
    this.#dirty = true;
  }

  /** Whether a scan is needed. Costs a stat per source and per young file; `thorough`, per followed file. */
  async hasChanged({ thorough }: { readonly thorough: boolean }): Promise<boolean> {
    if (this.#dirty) return true;
    for (const [path, { aspect, value }] of this.#seen) {
      if (((await tryStatHostFile(path))?.[aspect] ?? '') !== value) return true;
    }
    for (const [path, file] of this.#followed) {
      if (!thorough && Date.now() > file.youngUntilMs) continue;
      if (await this.#becameImage(path, file)) return true;
    }
    return false;
  }

  /** Called before a scan lists the sources. */
  async beginScan(): Promise<void> {
    this.#dirty = false;
    this.#seen.clear();
    for (const { path, isDirectory } of this.#options.sources) {
      const host = await tryStatHostFile(path);
      const aspect = isDirectory ? 'stamp' : 'identity';
      this.#seen.set(path, { aspect, value: host?.[aspect] ?? '' });
      if (!isDirectory || host === null) continue;
      if (Date.now() - host.changeTimeMs < CLOCK_TICK_MS) this.#dirty = true;
    }
  }

  /** Called after a scan with the files that are no images. */
  follow(files: readonly { path: string; stamp: string; modifyTimeMs: number }[]): void {
    this.#followed.clear();
    const latest = [...files].sort((a, b) => b.modifyTimeMs - a.modifyTimeMs);
    for (const { path, stamp, modifyTimeMs } of latest.slice(0, MAX_FOLLOWED)) {
      this.#followed.set(path, { stamp, youngUntilMs: modifyTimeMs + YOUNG_MS });
    }
  }

  close(): void {
    clearInterval(this.#timer);
  }

  // A log that grows in the directory costs a look at its head, not a scan.
  async #becameImage(
    path: string,
    file: { stamp: string; youngUntilMs: number },
  ): Promise<boolean> {
    const host = await tryStatHostFile(path);
    if (host === null || host.stamp === file.stamp) return false;
    file.stamp = host.stamp;
    file.youngUntilMs = host.modifyTimeMs + YOUNG_MS;
    return this.#options.isImage(path);
  }

  async #poll(): Promise<void> {
    if (this.#polling) return;
    this.#polling = true;
    try {
      if (await this.hasChanged({ thorough: true })) await this.#options.changed();
    } finally {
      this.#polling = false;
    }
  }
}
