/** What a catalog is made of, and what it tells about itself. */
import { BlockError, type BlockErrorWire } from '../../src/base/block-error.ts';
import type { Log } from '../../src/base/log.ts';
import type { Graph } from '../../src/block/graph.ts';
import type { ImageLocks } from '../../src/block/image-locks.ts';
import type { Node } from '../../src/block/node.ts';
import type { OpenGate } from '../../src/block/open-gate.ts';
import type { DriverRegistry } from '../../src/block/registry.ts';
import type { RemoteCredential } from '../../src/block/remote-access.ts';
import type { DetectZeroes, View } from '../../src/block/view.ts';
import type { Activity } from './activity.ts';
import type { IgnoredFile } from './listing.ts';
import type { StandIns } from './stand-ins.ts';

/** In front of a key for `nodeIds`: from now on the key stands for a new id, also for engines that come later. */
export const RENEW_NODE_ID = '!';

export interface CatalogOptions {
  /** As the command line gave them: directories of images, single files, URLs, each perhaps with a `NAME=`. At least one. */
  readonly sources: readonly { readonly name: string | null; readonly path: string }[];
  /** Its gate and locks should be the ones given here. */
  readonly graph: Graph;
  readonly registry: DriverRegistry;
  /** See `source-gate.ts`. */
  readonly gate: OpenGate;
  readonly locks: ImageLocks;
  /** What servers may want to see. */
  readonly credentials?: readonly RemoteCredential[];
  readonly log: Log;
  /** The real path of the mountpoint, which is never touched from here; null in tests without one. */
  readonly mountpoint: string | null;
  readonly readOnly: boolean;
  readonly allowShrink: boolean;
  /** `--detect-zeroes`. */
  readonly detectZeroes: DetectZeroes;
  /** `--format`: of a source that is one file; null probes. */
  readonly format: string | null;
  /** What views stand for after a pivot; nothing when it is not given. */
  readonly standIns?: StandIns;
  /** `user.vdiskfs.socket` and `.pid` of the root. */
  readonly socketPath: string;
  readonly pid: number;
  /** A read of a view, by its file name; for records of what guests read. */
  readonly noteRead?: (name: string, offset: number, lengthBytes: number) => void;
  /** The image of a view has been opened, and nobody has used it yet. */
  readonly opened?: (root: Node) => void;
  /** What works on the image of a view in the background, for `user.vdiskfs.jobs`; nothing when not given. */
  readonly jobsOf?: (view: View) => readonly object[];
  /**
   * Node ids, 2 or more, one per key in the same order; the same key has the same id for the life of the mount, unless
   * it is asked for with `RENEW_NODE_ID` in front: then it has a new one from now on, also for later engines. Keys are opaque.
   */
  readonly nodeIds: (keys: readonly string[]) => Promise<readonly number[]>;
  /** What engines died of again and again: its views answer EIO. */
  readonly blocked: {
    readonly nodeIds: ReadonlySet<number>;
    readonly paths: ReadonlySet<string>;
  };
  /** Which images are inactive; all are active when not given. */
  readonly activity?: Activity;
  /** Records what is being done with an image, in an engine that is careful; call what it returns when that has ended. */
  readonly begin: (task: {
    readonly id: string;
    readonly nodeId: number | null;
    readonly path: string | null;
    readonly name: string;
  }) => () => void;
}

export const blockedError = (path: string): BlockError =>
  new BlockError({
    kind: 'io',
    message: 'engines died of it again and again, so it is not served',
    hint: '`vdiskfs restart MOUNTPOINT` gives it another try',
    path,
    op: 'open',
  });

/** What `status` shows of one view. */
export interface ViewStatus {
  readonly name: string;
  readonly path: string;
  /** The file that the view was made for, when it stands for another one after a pivot; else null. */
  readonly standsInFor: string | null;
  /** Null when it cannot be told. */
  readonly format: string | null;
  readonly virtualSizeBytes: number;
  readonly allocatedBytes: number;
  /** The image first, then what lies below it. */
  readonly chain: readonly { readonly path: string; readonly format: string }[];
  /** Null for a writable view. */
  readonly readOnlyReason: string | null;
  /** Why it cannot be opened; null when it can, as far as is known. */
  readonly error: BlockErrorWire | null;
  /** The chain is open. */
  readonly open: boolean;
  /** False while another host may use the image. */
  readonly active: boolean;
  /** Open handles of the mount. */
  readonly handles: number;
  /** Mapping metadata of the chain in the engine's memory. */
  readonly metadataBytes: number;
}

export interface CatalogStatus {
  readonly views: readonly ViewStatus[];
  readonly ignored: readonly IgnoredFile[];
}
