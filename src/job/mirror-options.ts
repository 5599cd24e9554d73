/** What a mirror is told, in QEMU's words. */
import type { DirtyBitmap } from '../block/dirty-bitmap.ts';
import type { TrackedBitmap } from '../block/dirty-tracking.ts';
import type { Node } from '../block/node.ts';
import type { View } from '../block/view.ts';
import type { BitmapFile } from './bitmap-file.ts';
import type { ErrorPolicy } from './error-policy.ts';

/**
 * What is copied at first. `full`: all that the guest sees; `top`: what the image has itself; `none`: nothing;
 * `incremental`, `bitmap`: what is dirty in a bitmap. What the guest writes from the start on always is.
 */
export const MIRROR_SYNC = ['full', 'top', 'none', 'incremental', 'bitmap'] as const;
export type MirrorSync = (typeof MIRROR_SYNC)[number];

/** When the bitmap that was copied from is brought up to date: on success, never, or also after a failure. */
export const BITMAP_MODES = ['on-success', 'never', 'always'] as const;
export type BitmapMode = (typeof BITMAP_MODES)[number];

/** `write-blocking`: the guest's writes are in the target, too, before they are answered. */
export const COPY_MODES = ['background', 'write-blocking'] as const;
export type CopyMode = (typeof COPY_MODES)[number];

/** How a mirror outlives its engine. */
export interface KeptBitmap {
  /** Of an earlier engine: it records already, and has everything that the target lacks. Null: the mirror begins anew. */
  readonly resumed: TrackedBitmap | null;
  /** Keeps the bitmap from now on; null where that cannot be done. */
  readonly create: (content: DirtyBitmap) => BitmapFile | null;
  /** The job ends because the engine does. */
  readonly outlives: () => boolean;
}

export interface MirrorOptions {
  readonly view: View;
  /** The view's root, which no other job changes meanwhile. */
  readonly root: Node;
  /** Open for writing, and nobody else's. */
  readonly target: Node;
  readonly sync: MirrorSync;
  /** `top`: the layer below what is copied, when that is not the image's own backing file. */
  readonly above?: Node;
  /** Of the root, and of `incremental` and `bitmap` alone. */
  readonly bitmap: TrackedBitmap | null;
  readonly bitmapMode: BitmapMode;
  /** A power of two, 512 bytes to 64 MiB. */
  readonly granularityBytes: number;
  /** For copies in flight, all together; one runs at least. */
  readonly bufferBytes: number;
  readonly copyMode: CopyMode;
  readonly onSourceError: ErrorPolicy;
  readonly onTargetError: ErrorPolicy;
  /** What reads as zeros takes no space in the target where its format can say so. */
  readonly unmap: boolean;
  /** The target reads as zeros everywhere: what is zeros in the source needs no copy. */
  readonly targetIsZero: boolean;
  readonly kept?: KeptBitmap;
  /** Errors: EBUSY while somebody writes the source without being seen. */
  readonly refuseUnseen?: () => void;
  /**
   * Lets the view go on over the target, durably; in a drained section, with both sides flushed. Errors: nothing has
   * changed then.
   */
  readonly pivot: () => Promise<void>;
  /**
   * Called once, whatever came of it. `abandoned`: the job was cancelled, and the target may have requests that it never
   * answers: its end is not to be waited for.
   */
  readonly ended: (outcome: {
    readonly pivoted: boolean;
    readonly abandoned: boolean;
  }) => Promise<void>;
}

export const MIN_MIRROR_GRANULARITY_BYTES = 512;
export const MAX_MIRROR_GRANULARITY_BYTES = 64 << 20;
export const DEFAULT_BUFFER_BYTES = 16 << 20;
const LEAST_DEFAULT_BYTES = 4096;
const MOST_DEFAULT_BYTES = 64 << 10;

/** As QEMU chooses it: the target's clusters, from 4 to 64 KiB. */
export const defaultGranularity = (target: Node): number => {
  const { clusterBytes } = target.driver;
  const wanted = clusterBytes > 1 ? clusterBytes : MOST_DEFAULT_BYTES;
  return Math.min(MOST_DEFAULT_BYTES, Math.max(LEAST_DEFAULT_BYTES, wanted));
};
