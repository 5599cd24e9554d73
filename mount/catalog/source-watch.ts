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

/** Young files that were no images yet are looked at again, so many at most. */
const MAX_YOUNG_FILES = 64;
const YOUNG_MS = 5000;

/** A single file is the same while its inode is; what writes to it is mostly we. */
type Aspect = 'stamp' | 'identity';

export interface SourceWatchOptions {
  readonly sources: readonly Source[];
  /** Something has changed; not called again while its promise is pending. Never rejects. */
  readonly changed: () => Promise<void>;
}

export class SourceWatch {
  readonly #options: SourceWatchOptions;
  /** What was there at the last scan; '' for what was not. */
  #seen = new Map<string, { readonly aspect: Aspect; readonly value: string }>();
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

  /** Whether a scan is needed. Costs a stat per source. */
  async hasChanged(): Promise<boolean> {
    if (this.#dirty) return true;
    for (const [path, { aspect, value }] of this.#seen) {
      if (((await tryStatHostFile(path))?.[aspect] ?? '') !== value) return true;
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

  /**
   * Called after a scan with the files that were no usable images: one that is being written may become one, which its
   * directory's time does not tell.
   */
  followYoung(files: readonly { path: string; stamp: string; modifyTimeMs: number }[]): void {
    const young = files.filter((file) => Date.now() - file.modifyTimeMs < YOUNG_MS);
    for (const { path, stamp } of young.slice(0, MAX_YOUNG_FILES)) {
      this.#seen.set(path, { aspect: 'stamp', value: stamp });
    }
  }

  close(): void {
    clearInterval(this.#timer);
  }

  async #poll(): Promise<void> {
    if (this.#polling) return;
    this.#polling = true;
    try {
      if (await this.hasChanged()) await this.#options.changed();
    } finally {
      this.#polling = false;
    }
  }
}
