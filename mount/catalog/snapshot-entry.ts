/**
 * An internal snapshot of one of a mount's images: a read-only view `NAME@SNAPSHOT.raw` beside the image's own.
 *
 * What can be said of the file is its image's to say: whether it opens, whether it is still the same. The chain is opened
 * by itself, also while the image is written: nothing that a snapshot shows is written in place. It is there as long as
 * the image says so; `retire` comes before the image is told to delete it.
 */
import { BlockError } from '../../src/base/block-error.ts';
import type { Log } from '../../src/base/log.ts';
import type { Graph } from '../../src/block/graph.ts';
import type { SnapshotDescription } from '../../src/block/image-description.ts';
import type { Node } from '../../src/block/node.ts';
import { View } from '../../src/block/view.ts';
import type { Entry, FileAttributes } from '../directory.ts';
import { extendedAttributesOf } from './attributes.ts';
import type { HostFile } from './host-file.ts';
import type { ImageEntry } from './image-entry.ts';
import type { Inspection } from './inspection.ts';

const READ_ONLY_REASON = 'it is a snapshot';
const WRITE_BITS = 0o222;

export interface SnapshotEntryFields {
  readonly nodeId: number;
  readonly key: string;
  readonly name: string;
  readonly image: ImageEntry;
  readonly snapshot: SnapshotDescription;
}

/**
 * What makes a snapshot of an image one and the same: ids are used again. With the image's own node id, because an image
 * that was replaced has other snapshots.
 */
export const snapshotKey = (image: { readonly nodeId: number }, s: SnapshotDescription): string =>
  `${image.nodeId}:${s.id}:${s.dateSeconds}.${s.dateNanoseconds}:${s.virtualSizeBytes}:${s.name}`;

export class SnapshotEntry implements Entry {
  readonly nodeId: number;
  readonly key: string;
  readonly image: ImageEntry;
  readonly snapshot: SnapshotDescription;
  readonly view: View;
  name: string;
  gone = false;
  known = false;
  handles = 0;
  idleSinceMs = 0;
  readonly readOnlyReason = READ_ONLY_REASON;
  readonly #graph: Graph;
  #isRetired = false;

  constructor(context: { readonly graph: Graph; readonly log: Log }, fields: SnapshotEntryFields) {
    this.#graph = context.graph;
    this.nodeId = fields.nodeId;
    this.key = fields.key;
    this.name = fields.name;
    this.image = fields.image;
    this.snapshot = fields.snapshot;
    this.view = this.#createView(context.log);
    if (this.image.view.isHeld) this.view.hold();
  }

  get host(): HostFile {
    return this.image.host;
  }

  get inspection(): Inspection {
    return this.image.inspection;
  }

  get error(): BlockError | null {
    return this.image.error;
  }

  get isOpen(): boolean {
    return this.view.root !== null;
  }

  isMended(): Promise<boolean> {
    return this.image.isMended();
  }

  /** Its image reports what is wrong. */
  report(): void {}

  async settle(): Promise<void> {}

  /** Owner and mode are those of the image's file, the time of change is the snapshot's own. */
  async attributes(): Promise<FileAttributes> {
    const image = await this.image.attributes();
    const { virtualSizeBytes, dateSeconds, dateNanoseconds } = this.snapshot;
    return {
      ...image,
      sizeBytes: this.image.isShownBroken ? 0 : virtualSizeBytes,
      mode: image.mode & ~WRITE_BITS,
      modifyTimeMs: dateSeconds * 1000 + dateNanoseconds / 1e6,
    };
  }

  async setTimes(): Promise<FileAttributes> {
    throw new BlockError({
      kind: 'read-only',
      op: 'set times',
      message: `the view is read-only: ${READ_ONLY_REASON}`,
    });
  }

  async extendedAttributes(): Promise<ReadonlyMap<string, string>> {
    return extendedAttributesOf({
      ...(await this.sizes()),
      inspection: this.inspection,
      jobs: [],
      active: !this.image.isInactive,
    });
  }

  /** Clusters are shared with the image: what the whole file takes is what can be told. */
  async sizes(): Promise<{ virtualSizeBytes: number; allocatedBytes: number }> {
    const { allocatedBytes } = await this.image.sizes();
    return { virtualSizeBytes: this.snapshot.virtualSizeBytes, allocatedBytes };
  }

  async dispose(): Promise<void> {
    await this.view.close();
  }

  /** Closes it, and keeps it from being opened again: its image is about to delete it. */
  async retire(): Promise<void> {
    this.#isRetired = true;
    // One that is on its way comes to its end.
    await this.image.alone(async () => undefined);
    await this.view.close();
  }

  /** It was not deleted after all. */
  reinstate(): void {
    this.#isRetired = false;
  }

  #createView(log: Log): View {
    const entry = this;
    return new View({
      get name() {
        return entry.name;
      },
      readOnlyReason: READ_ONLY_REASON,
      allowShrink: false,
      log,
      open: () => entry.#open(),
      close: (root) => entry.#graph.close(root),
    });
  }

  async #open(): Promise<Node> {
    const { path } = this.host;
    await this.image.checkFile();
    return this.image.alone(async () => {
      if (this.gone || this.#isRetired) throw this.#stale();
      const format = this.inspection.declaredFormat;
      const snapshot = this.snapshot.id;
      const root = await this.#graph.open({ path, format, readOnly: true, snapshot });
      this.idleSinceMs = performance.now();
      return root;
    });
  }

  #stale(): BlockError {
    const message = 'the snapshot is gone';
    return new BlockError({
      kind: 'io',
      errno: 'ESTALE',
      message,
      path: this.host.path,
      op: 'open',
    });
  }
}
