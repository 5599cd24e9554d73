/**
 * The contract between a mount's directory of views (catalog.ts) and the backends that serve it.
 *
 * A mount is flat: the root (node id 1) and one regular file per view.
 */
import type { View } from '../src/block/view.ts';

export const ROOT_NODE_ID = 1;

/** What stat(2) says; times in milliseconds since 1970, fractions kept. */
export interface FileAttributes {
  readonly sizeBytes: number;
  /** Units of 512 bytes. */
  readonly blocks: number;
  /** Permission bits only, without the file type. */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly accessTimeMs: number;
  readonly modifyTimeMs: number;
  readonly changeTimeMs: number;
}

export interface Entry {
  /**
   * Stands for device, inode and snapshot id; 2 or more; never used again for another file; known to the
   * supervisor before the kernel hears of it, so that an engine that is started later gives the same.
   */
  readonly nodeId: number;
  /** The file's name in the mount. */
  readonly name: string;
  /** An image that cannot be opened has a view too, whose `open` throws the reason. */
  readonly view: View;
  /** Never throws for an image that cannot be opened: that one has size 0 and mode 0. */
  attributes(): Promise<FileAttributes>;
  /**
   * Times of the image file; milliseconds, null leaves one alone. The attributes with them, the others as they were
   * last seen. Errors: EROFS for a read-only view.
   */
  setTimes(accessTimeMs: number | null, modifyTimeMs: number | null): Promise<FileAttributes>;
  /** Values of the `user.vdiskfs.*` attributes, by full name. */
  extendedAttributes(): Promise<ReadonlyMap<string, string>>;
}

export interface Directory {
  rootAttributes(): Promise<FileAttributes>;
  rootExtendedAttributes(): Promise<ReadonlyMap<string, string>>;
  /** By name, after a look whether SOURCE has changed. */
  lookup(name: string): Promise<Entry | null>;
  /** In a stable order, after a look whether SOURCE has changed. */
  entries(): Promise<readonly Entry[]>;
  /** Also an entry whose name is gone while the kernel may still know its id. */
  byNodeId(nodeId: number): Entry | null;
  /** The kernel has forgotten the id: an entry whose name is gone is closed and dropped when it is also not open. */
  forgotten(nodeId: number): void;
  /** OPEN and RELEASE, so that idle and vanished images can be closed. */
  opened(entry: Entry): void;
  released(entry: Entry): void;
  /** statfs: of the file system that holds SOURCE, in bytes. */
  space(): Promise<{ totalBytes: number; freeBytes: number; availableBytes: number }>;
  /** A name has gone, or stands for another file now: kernels must drop what they know under it. */
  onNameChanged(listener: (name: string) => void): void;
  /** A view that was held has lost its name, and what waits for it is to be told so. */
  onLost(listener: (nodeId: number) => void): void;
  /** Flushes and closes every view. Errors are logged, the first is thrown at the end. */
  close(): Promise<void>;
}
