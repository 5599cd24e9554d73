/**
 * The dirty bitmap by which a backup knows what to copy. What it held at the point in time is frozen; guests' writes go into the
 * bitmap as ever, and into a successor, which has them alone. When the backup succeeds the bitmap becomes what the successor
 * is: what was written since. When it fails nothing is to be done, because the bitmap has both.
 */
import type { DirtyBitmap } from '../block/dirty-bitmap.ts';
import { DirtyBitmap as Bitmap } from '../block/dirty-bitmap.ts';
import { TrackedBitmap } from '../block/dirty-tracking.ts';
import type { Node } from '../block/node.ts';

/** When the bitmap gives up what was copied: QEMU's `BitmapSyncMode`. */
export type BitmapMode = 'on-success' | 'always' | 'never';

export class FrozenBitmap {
  /** What it held at the point in time. */
  readonly content: DirtyBitmap;
  readonly #root: Node;
  readonly #bitmap: TrackedBitmap;
  readonly #mode: BitmapMode;
  readonly #successor: TrackedBitmap;

  private constructor(root: Node, bitmap: TrackedBitmap, mode: BitmapMode) {
    this.#root = root;
    this.#bitmap = bitmap;
    this.#mode = mode;
    this.content = bitmap.content.copy();
    this.#successor = new TrackedBitmap({
      name: null,
      content: new Bitmap(bitmap.content),
      recording: bitmap.recording,
      persistent: false,
    });
  }

  /** Drained. `user`: the job, in whose way nobody may get. Errors: ENOENT, EBUSY, EINVAL (inconsistent), EIO. */
  static async freeze(
    root: Node,
    name: string,
    options: { readonly mode: BitmapMode; readonly user: string },
  ): Promise<FrozenBitmap> {
    const bitmap = root.dirtyBitmaps.get(name);
    const frozen = new FrozenBitmap(root, bitmap, options.mode);
    bitmap.user = options.user;
    try {
      // From now on what the image keeps of it is out of date, and says so.
      await bitmap.storage?.hold();
      await root.dirtyBitmaps.add(frozen.#successor);
    } catch (error) {
      bitmap.user = null;
      throw error;
    }
    return frozen;
  }

  /** Everything was copied. */
  succeed(): void {
    if (this.#mode !== 'never') {
      this.#root.dirtyBitmaps.replaceContent(this.#bitmap, this.#successor.content);
    }
    this.#thaw();
  }

  /** `uncopied`: what was not copied, of any granularity. */
  fail(uncopied: DirtyBitmap): void {
    if (this.#mode === 'always') {
      const content = this.#successor.content.copy();
      content.merge(uncopied);
      this.#root.dirtyBitmaps.replaceContent(this.#bitmap, content);
    }
    this.#thaw();
  }

  #thaw(): void {
    this.#root.dirtyBitmaps.drop(this.#successor);
    this.#bitmap.user = null;
  }
}
