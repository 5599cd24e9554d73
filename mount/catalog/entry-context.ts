/** What all entries of a mount share, and what they tell of each other. */
import type { BlockError } from '../../src/base/block-error.ts';
import type { Log } from '../../src/base/log.ts';
import type { Graph } from '../../src/block/graph.ts';
import type { ImageLocks } from '../../src/block/image-locks.ts';
import type { Node } from '../../src/block/node.ts';
import type { DetectZeroes, View } from '../../src/block/view.ts';
import type { Activity } from './activity.ts';
import type { CatalogOptions } from './catalog-options.ts';
import type { Inspection } from './inspection.ts';
import type { Candidate } from './listing.ts';

/** An image that another is concerned with. */
export interface OtherImage {
  readonly name: string;
}

export interface EntryContext {
  readonly graph: Graph;
  readonly locks: ImageLocks;
  readonly log: Log;
  readonly readOnly: boolean;
  readonly allowShrink: boolean;
  readonly detectZeroes: DetectZeroes;
  /** Looks at the file again; `patient`: servers are waited for. Null when it is no image any more. */
  inspect(candidate: Candidate, patient: boolean): Promise<Inspection | null>;
  /** Why an image is not served at all; null for one that is. */
  refusal(nodeId: number, path: string): BlockError | null;
  /** See `CatalogOptions`. */
  readonly begin: CatalogOptions['begin'];
  readonly activity: Activity;
  /** The image below the one of this name that has handles which may write it; null for none: from then on they are only read. */
  writerBelow(inspection: Inspection, name: string): Promise<OtherImage | null>;
  /** See `CatalogOptions.opened`. */
  opened(root: Node): void;
  /** See `CatalogOptions.noteRead`. */
  noteRead(name: string, offset: number, lengthBytes: number): void;
  /** What works on it in the background. */
  jobsOf(view: View): readonly object[];
  /** The file stands for something else than this entry now: the next scan replaces it. */
  outdated(): void;
}
