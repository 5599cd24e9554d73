/** What jobs copy to: images that are no views. */
import type { BackingLink } from '../block/image-description.ts';
import type { Node } from '../block/node.ts';

export interface TargetRequest {
  /** An absolute path, or a URL. */
  readonly path: string;
  /** Null probes; not of one that is made. */
  readonly format: string | null;
  /** What is made there, over a file of that name; null for an image that is there. */
  readonly create: {
    readonly virtualSizeBytes: number;
    /** As the header shall name it; it is not opened for that. */
    readonly backing: BackingLink | null;
  } | null;
  /** Null: one is made up. */
  readonly nodeName: string | null;
  /** What its header names below it is not opened. */
  readonly withoutBacking?: boolean;
}

/** An image that one job writes. Nobody else has the file meanwhile. */
export interface JobTarget {
  readonly node: Node;
  /** It was made for the job. */
  readonly isNew: boolean;
  /** The job does not need it any more. Errors: those of its closing, which flushes. */
  release(): Promise<void>;
  /** In place of `release`, when nothing has come of the job: what was made for it goes. Never throws. */
  discard(): Promise<void>;
  /** In place of `release`: a view has it now. */
  handedOver(): Promise<void>;
}

/** A node of `blockdev-add`. */
export interface AddedNode {
  readonly nodeName: string;
  readonly path: string;
  /** Null: a protocol node, whose bytes are the guest's. */
  readonly format: string | null;
  /** The file has no backing file, or the node is refused. */
  readonly mustStandAlone: boolean;
}

export interface Targets {
  /** Errors: EBUSY for a file that is used here; EEXIST, ENOENT and those of making and opening an image. */
  open(request: TargetRequest, jobId: string): Promise<JobTarget>;
  /** One of `blockdev-add`. Errors: JobError when there is none, or another job has it. */
  take(nodeName: string, jobId: string): Promise<JobTarget>;
  /** `blockdev-add`. Errors: as `open`; EINVAL for a name that is taken. */
  add(node: AddedNode): Promise<void>;
  /** Puts a format on a protocol node of `blockdev-add`, which is part of it from then on. */
  addOver(node: Omit<AddedNode, 'path'>, protocolNode: string): Promise<void>;
  /** `blockdev-del`. Errors: JobError while it is used. */
  remove(nodeName: string): Promise<void>;
}
