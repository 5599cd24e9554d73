/** What the parts of an opened image share. Each field is owned by the part that its comment names; others read it. */
import { present } from '../../src/base/assert.ts';
import { toBlockError } from '../../src/base/block-error.ts';
import { divideUp } from '../../src/base/range.ts';
import { type GuestOffset, guestOffset } from '../../src/base/units.ts';
import { CheckpointSchedule } from '../../src/block/checkpoint-schedule.ts';
import type { OpenRequest } from '../../src/block/driver.ts';
import { HeaderChanges } from '../../src/block/header-changes.ts';
import { JournaledChanges } from '../../src/block/journaled-changes.ts';
import type { Node } from '../../src/block/node.ts';
import { RangeLocks } from '../../src/block/range-locks.ts';
import { Bitmap } from './bitmap.ts';
import type { AddCowHeader } from './header.ts';
import { encodeRecord, type JournalRecord, stampOf } from './journal-records.ts';

/** A bit reaches the file within this time, or with this much of the journal, by itself. */
const CHECKPOINT_DELAY_MS = 5000;
const CHECKPOINT_JOURNAL_BYTES = 16 << 20;
const MIN_DIRTY_BYTES = 64 << 10;

/** Neighbouring bytes of the guest that are all in the image file, or all not. */
export interface GuestRun {
  readonly isSet: boolean;
  readonly lengthBytes: number;
}

export class ImageState {
  readonly request: OpenRequest;
  readonly file: Node;
  /** The image file: the guest's bytes, at the guest's offsets. */
  readonly image: Node;
  readonly bitmap: Bitmap;
  readonly clusterBytes: number;
  /** Guest ranges, rounded to clusters, whose bits are being set. */
  readonly locks = new RangeLocks();
  readonly schedule: CheckpointSchedule;
  /** What the restart journal is told; checkpoint.ts says what it has covered. */
  readonly journaled: JournaledChanges<JournalRecord>;
  /** Every change of the header. checkpoint.ts puts back what is owed. */
  readonly headerChanges: HeaderChanges;
  /** As in the file, unless that is owed; changed by image.ts and completion.ts. */
  header: AddCowHeader;
  /** Neither bitmap nor backing file is used, and the header says so on disk. Set by completion.ts, never cleared. */
  isAllAllocated: boolean;
  /** While the size is changed: the clusters that there will be; else null. Set by resize.ts. */
  plannedClusters: number | null = null;
  readonly #maxDirtyBytes: number;

  constructor(parts: {
    readonly request: OpenRequest;
    readonly header: AddCowHeader;
    readonly image: Node;
    /** Called one at a time. */
    readonly checkpoint: () => Promise<void>;
  }) {
    const { request, header, image } = parts;
    const { file, path, cacheBytes, log, journal } = request;
    this.request = request;
    this.file = file;
    this.image = image;
    this.header = header;
    this.isAllAllocated = header.isAllAllocated;
    this.clusterBytes = header.clusterBytes;
    const { clusterBytes, headerBytes } = header;
    this.bitmap = new Bitmap({ file, startBytes: headerBytes, clusterBytes, cacheBytes });
    this.#maxDirtyBytes = Math.max(cacheBytes, MIN_DIRTY_BYTES);
    this.journaled = new JournaledChanges({
      journal,
      log,
      path,
      changesPerRecord: 1,
      encode: ([change]) => encodeRecord(present(change, 'a record has its change')),
    });
    this.schedule = new CheckpointSchedule({
      run: parts.checkpoint,
      maxDelayMs: CHECKPOINT_DELAY_MS,
      failed: (error) => log.error(path, `a checkpoint failed: ${toBlockError(error).describe()}`),
    });
    this.headerChanges = new HeaderChanges({
      file,
      path,
      log,
      owes: () => this.schedule.changed(),
      tell: (owed) => void this.journaled.tell([{ kind: 'header', owed }]),
      checkpoint: () => this.schedule.request(),
    });
  }

  /** The guest's size is the image file's. */
  get lengthBytes(): number {
    return this.image.lengthBytes;
  }

  get clusters(): number {
    return divideUp(this.lengthBytes, this.clusterBytes);
  }

  get isResizing(): boolean {
    return this.plannedClusters !== null;
  }

  /** Guest bytes of the backing's end; 0 without one. */
  get backingBytes(): number {
    return this.request.backing()?.lengthBytes ?? 0;
  }

  get isDirty(): boolean {
    return this.bitmap.dirtyBytes > 0 || this.headerChanges.owed !== null;
  }

  /** The run that a range begins with. Errors: EIO. */
  runAt(offset: number, lengthBytes: number): GuestRun | Promise<GuestRun> {
    if (this.isAllAllocated) return { isSet: true, lengthBytes };
    const { clusterBytes } = this;
    const inCluster = offset % clusterBytes;
    const first = (offset - inCluster) / clusterBytes;
    const found = this.bitmap.run(first, divideUp(inCluster + lengthBytes, clusterBytes));
    const inBytes = ({ isSet, clusters }: { isSet: boolean; clusters: number }): GuestRun => ({
      isSet,
      lengthBytes: Math.min(lengthBytes, clusters * clusterBytes - inCluster),
    });
    return found instanceof Promise ? found.then(inBytes) : inBytes(found);
  }

  /** What lies below the image file: the backing's bytes, zeros past its end or without one. */
  async readBelow(offset: GuestOffset, buffer: Uint8Array): Promise<void> {
    const below = this.request.backing();
    if (below === null) buffer.fill(0);
    else await below.readClipped(offset, buffer);
  }

  /** Back pressure, before a request takes anything: waits for a checkpoint when too much is dirty. Without locks. */
  async admit(): Promise<void> {
    const dirty = this.bitmap.dirtyBytes;
    if (dirty > this.#maxDirtyBytes) await this.schedule.request();
    else if (dirty > this.#maxDirtyBytes / 2) this.schedule.requestInBackground();
  }

  /**
   * The clusters' bytes are in the image file: from now on they are read there. When it returns the change survives
   * SIGKILL; it reaches the disk in a checkpoint. `isCopy`: they are what was read below.
   */
  async publish(start: number, end: number, { isCopy = false } = {}): Promise<void> {
    const { clusterBytes, request } = this;
    const first = start / clusterBytes;
    const clusters = divideUp(end, clusterBytes) - first;
    // In the turn in which they are told: nobody may be given to write what SIGKILL would hide.
    while (!this.bitmap.setAtOnce(first, clusters)) await this.bitmap.load(first, clusters);
    request.mappingChanged({
      start: guestOffset(start),
      lengthBytes: end - start,
      staysReadable: isCopy,
    });
    this.schedule.changed();
    await this.#record(first, clusters);
  }

  async #record(first: number, clusters: number): Promise<void> {
    const stamp = stampOf(this.header.fields);
    const bits = { kind: 'bits', stamp, imageBytes: this.lengthBytes, first, clusters } as const;
    if (!this.journaled.tell([bits])) await this.schedule.request();
    else if ((this.request.journal?.pendingBytes ?? 0) > CHECKPOINT_JOURNAL_BYTES)
      this.schedule.requestInBackground();
  }

  /**
   * Before any change of a guest is answered. What it has found, another one may have made that the journal has not taken: this one
   * waits for a checkpoint, too. Errors: those of the checkpoint.
   */
  async settled(): Promise<void> {
    const { journaled, schedule } = this;
    if (journaled.isBehind && !journaled.catchUp()) await schedule.request();
  }
}
