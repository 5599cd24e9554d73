/**
 * Notices that sources have changed: by inotify, which tells at once but not on every file system, and by a cheap look
 * at the times of directories, which tells when asked.
 */
import { type FSWatcher, watch } from 'node:fs';
import { dirname, join } from 'node:path';
import { toBlockError } from '../../src/base/block-error.ts';
import type { Log } from '../../src/base/log.ts';
import { tryStatHostFile } from './host-file.ts';
import type { Source } from './listing.ts';

/**
 * A directory whose time is as young as this when it is listed may change again without its time telling: the clock of
 * file systems has ticks (4 ms on Linux with HZ=250; up to 2 s on FAT).
 */
const CLOCK_TICK_MS = 20;

/** Events come in bursts (a copy is a create and many changes); one scan answers them all. */
const QUIET_MS = 50;

/** Young files that were no images yet are looked at again, so many at most. */
const MAX_YOUNG_FILES = 64;
const YOUNG_MS = 5000;

export interface SourceWatchOptions {
  readonly sources: readonly Source[];
  readonly log: Log;
  /** Whether the writing of a file may matter: an image that is open here is written by us. */
  readonly matters: (path: string) => boolean;
  /** Something has changed; called after a burst of events. */
  readonly changed: () => void;
}

export class SourceWatch {
  readonly #options: SourceWatchOptions;
  readonly #watchers: FSWatcher[] = [];
  /** Stamps of directories, single files and young files at the last scan. */
  #stamps = new Map<string, string>();
  #dirty = true;
  #timer: NodeJS.Timeout | null = null;

  constructor(options: SourceWatchOptions) {
    this.#options = options;
    for (const directory of new Set(options.sources.map(watchedDirectory))) this.#watch(directory);
  }

  /** A change is known, or suspected, that no scan has seen. */
  markDirty(): void {
    this.#dirty = true;
  }

  /** Whether a scan is needed. Costs a stat per source. */
  async hasChanged(): Promise<boolean> {
    if (this.#dirty) return true;
    for (const [path, stamp] of this.#stamps) {
      if (((await tryStatHostFile(path))?.stamp ?? '') !== stamp) return true;
    }
    return false;
  }

  /** Called before a scan lists the sources. */
  async beginScan(): Promise<void> {
    this.#dirty = false;
    const stamps = new Map<string, string>();
    for (const { path } of this.#options.sources) {
      const host = await tryStatHostFile(path);
      stamps.set(path, host?.stamp ?? '');
      if (host !== null && Date.now() - host.changeTimeMs < CLOCK_TICK_MS) this.#dirty = true;
    }
    this.#stamps = stamps;
  }

  /**
   * Called after a scan with the files that were no usable images: one that is being written may become one, which its
   * directory's time does not tell.
   */
  followYoung(files: readonly { path: string; stamp: string; modifyTimeMs: number }[]): void {
    let room = MAX_YOUNG_FILES;
    for (const file of files) {
      if (Date.now() - file.modifyTimeMs > YOUNG_MS || room-- <= 0) continue;
      this.#stamps.set(file.path, file.stamp);
    }
  }

  close(): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    for (const watcher of this.#watchers) watcher.close();
  }

  #watch(directory: string): void {
    const { log } = this.#options;
    try {
      const watcher = watch(directory, { persistent: false }, (event, name) =>
        this.#onEvent(directory, event, name),
      );
      watcher.on('error', (error) => log.debug(directory, toBlockError(error).message));
      this.#watchers.push(watcher);
    } catch (error) {
      // Without inotify a change shows when the mount is listed or a name is looked up.
      log.info(directory, `is not watched: ${toBlockError(error).message}`);
    }
  }

  #onEvent(directory: string, event: string, name: string | null): void {
    if (name !== null) {
      if (name.startsWith('.')) return;
      const path = join(directory, name);
      if (event === 'change' && !this.#options.matters(path)) return;
    }
    this.#dirty = true;
    this.#timer ??= setTimeout(() => {
      this.#timer = null;
      this.#options.changed();
    }, QUIET_MS).unref();
  }
}

const watchedDirectory = (source: Source): string =>
  source.isDirectory ? source.path : dirname(source.path);
