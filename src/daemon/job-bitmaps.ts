/**
 * The bitmaps that jobs keep beside the engine's memory (src/job/bitmap-file.ts): found by the next engine of the same mount,
 * and put back on their image when it is opened, before the first write.
 */
import { createHash } from 'node:crypto';
import { mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import type { DirtyBitmap } from '../block/dirty-bitmap.ts';
import { TrackedBitmap } from '../block/dirty-tracking.ts';
import type { Node } from '../block/node.ts';
import type { KeptBitmaps, KeptJob } from '../control/context.ts';
import { BitmapFile, type BitmapFileScope } from '../job/bitmap-file.ts';
import { identify } from './process-identity.ts';

const SUFFIX = '.bits';

interface Expected {
  readonly path: string;
  readonly target: string;
  /** On the image's node as it was opened last. */
  attached: {
    readonly root: Node;
    readonly bitmap: TrackedBitmap;
    readonly file: BitmapFile;
  } | null;
}

export class JobBitmaps implements KeptBitmaps {
  readonly #directory: string;
  /** This boot and this supervisor. */
  readonly #instance: string;
  readonly #prefix: string;
  /** By path of the image. */
  readonly #expected = new Map<string, Expected>();

  /** `directory`: on tmpfs. `mountpoint`: mounts of other places have theirs there, too. */
  constructor(options: { readonly directory: string; readonly mountpoint: string }) {
    this.#directory = options.directory;
    const { pid, startTime } = identify(process.ppid);
    this.#prefix = `mirror-${digest(options.mountpoint)}-`;
    const bootId = readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
    this.#instance = `${bootId} ${pid} ${startTime}`;
  }

  /**
   * What an earlier engine of this mount has left. It is looked for here, and not among the records of jobs, so that no request
   * waits for the disk that those are on; `giveUpRest` when they are known.
   */
  expectAll(): void {
    for (const name of this.#names()) {
      const path = join(this.#directory, name);
      const scope = BitmapFile.scopeOf(path);
      if (scope?.instance !== this.#instance) continue;
      this.#expected.set(scope.source, { path, target: scope.target, attached: null });
    }
  }

  /** An image has been opened, and nobody has written to it yet. */
  opened(root: Node): void {
    const expected = this.#expected.get(root.path);
    if (expected === undefined || root.readOnly) return;
    expected.attached?.file.close();
    expected.attached = null;
    const scope = { instance: this.#instance, source: root.path, target: expected.target };
    const loaded = BitmapFile.load(expected.path, { ...scope, lengthBytes: root.lengthBytes });
    if (loaded === null) return;
    const { content, file } = loaded;
    const bitmap = new TrackedBitmap({ name: null, content, recording: true, persistent: false });
    bitmap.persistence = file;
    root.dirtyBitmaps.adopt(bitmap);
    expected.attached = { root, bitmap, file };
  }

  take(root: Node, job: KeptJob): TrackedBitmap | null {
    const expected = this.#expected.get(root.path);
    if (expected === undefined) return null;
    const { attached, path, target } = expected;
    if (attached?.root !== root || path !== this.#pathOf(job) || target !== job.target) {
      this.giveUp(root.path);
      return null;
    }
    this.#expected.delete(root.path);
    return attached.bitmap;
  }

  giveUp(imagePath: string): void {
    const expected = this.#expected.get(imagePath);
    this.#expected.delete(imagePath);
    if (expected === undefined) return;
    const { attached, path } = expected;
    attached?.file.discard();
    attached?.root.dirtyBitmaps.drop(attached.bitmap);
    rmSync(path, { force: true });
  }

  giveUpRest(): void {
    for (const imagePath of [...this.#expected.keys()]) this.giveUp(imagePath);
  }

  create(job: KeptJob, content: DirtyBitmap): BitmapFile | null {
    const { source, target } = job;
    // Of another job, which can go on no more: this one has the image.
    this.giveUp(source);
    const scope: BitmapFileScope = { instance: this.#instance, source, target };
    try {
      mkdirSync(this.#directory, { recursive: true, mode: 0o700 });
    } catch {
      return null;
    }
    return BitmapFile.create(this.#pathOf(job), scope, content);
  }

  /** The mount has ended. */
  removeAll(): void {
    for (const name of this.#names()) rmSync(join(this.#directory, name), { force: true });
  }

  #names(): readonly string[] {
    return namesIn(this.#directory).filter(
      (name) => name.startsWith(this.#prefix) && name.endsWith(SUFFIX),
    );
  }

  #pathOf({ id, source }: { readonly id: string; readonly source: string }): string {
    return join(this.#directory, `${this.#prefix}${digest(`${id}\0${source}`)}${SUFFIX}`);
  }
}

const digest = (text: string): string =>
  createHash('sha256').update(text).digest('hex').slice(0, 16);

const namesIn = (directory: string): readonly string[] => {
  try {
    return readdirSync(directory);
  } catch {
    return [];
  }
};
