/** Snapshots that lie in the image itself. */
import type { SnapshotDescription } from './image-description.ts';

/** A snapshot to be made. */
export interface SnapshotRequest {
  /** Need not be unique: the id is. */
  readonly name: string;
  readonly dateSeconds: number;
  readonly dateNanoseconds: number;
}

/**
 * Snapshots inside of an image. All but `list` are called drained, with the image open for writing; each is durable when
 * it returns, and leaves everything as it was when it fails. Ids are those of `SnapshotDescription`. Errors: ENOENT for an
 * id that is not there, EFBIG, ENOSPC, EIO; EOPNOTSUPP where the format cannot count another user of a cluster.
 */
export interface InternalSnapshots {
  /** In the order of the image. */
  list(): Promise<readonly SnapshotDescription[]>;
  /** Keeps what the guest sees now, under a new id. */
  create(request: SnapshotRequest): Promise<SnapshotDescription>;
  /** Shows what the snapshot keeps, in its size; what was shown before is gone. */
  apply(id: string): Promise<void>;
  /** Frees what nothing else uses. No instance may show it. */
  remove(id: string): Promise<void>;
}
