/**
 * What the parts of an opened image share. Each field is owned by the part that its comment names; others read it.
 */
import { toBlockError } from '../../src/base/block-error.ts';
import { viewOf } from '../../src/base/byte-order.ts';
import {
  clusterOfHostOffset,
  type HostCluster,
  hostCluster,
  hostOffset,
} from '../../src/base/units.ts';
import { CheckpointSchedule } from '../../src/block/checkpoint-schedule.ts';
import type { OpenRequest } from '../../src/block/driver.ts';
import { HeaderChanges, type HeaderWriteOptions } from '../../src/block/header-changes.ts';
import { JournaledChanges } from '../../src/block/journaled-changes.ts';
import type { Node } from '../../src/block/node.ts';
import { RangeLocks } from '../../src/block/range-locks.ts';
import type { ClusterRun } from './allocator.ts';
import { ClusterMap } from './cluster-map.ts';
import { openExternalDataFile } from './data-clusters.ts';
import { encryptionHeaderPlace, openData } from './encryption/open.ts';
import { compressedPlace, entryOffset, isCompressed, type TableEntry } from './entry.ts';
import type { Qcow2Header } from './header.ts';
import type { HostData } from './host-data.ts';
import { type Change, encodeChanges } from './journal-records.ts';
import { AUTOCLEAR } from './layout.ts';
import { MetadataClusters } from './metadata-clusters.ts';
import { Refcounts } from './refcounts.ts';

/** A change reaches the image within this time, or with this much of the journal, by itself. */
const CHECKPOINT_DELAY_MS = 5000;
const CHECKPOINT_JOURNAL_BYTES = 16 << 20;

export interface HeaderRangeOptions extends HeaderWriteOptions {
  readonly lengthBytes: number;
}

export class ImageState {
  readonly request: OpenRequest;
  readonly header: Qcow2Header;
  readonly file: Node;
  /** Guest data goes through it, metadata through `file`. */
  readonly data: HostData;
  /** The external data file, in which guest clusters lie at the guest's offset; null: they lie in `file`. */
  readonly dataFile: Node | null;
  readonly clusterBytes: number;
  /** The unit that is unallocated, zero or data: the cluster, or its 32nd part. */
  readonly subclusterBytes: number;
  readonly refcounts: Refcounts;
  readonly map: ClusterMap;
  readonly metadata: MetadataClusters;
  /** Guest ranges, rounded to clusters, whose mapping is being changed. */
  readonly locks = new RangeLocks();
  readonly schedule: CheckpointSchedule;
  /** What the restart journal is told; checkpoint.ts says what it has covered. */
  readonly journaled: JournaledChanges<Change>;
  /** Every change of the header that memory follows. checkpoint.ts puts back what is owed. */
  readonly headerChanges: HeaderChanges;
  /** Changed by resize.ts and snapshots.ts alone. */
  lengthBytes: number;
  /** As the header has it now; changed by snapshots.ts alone. */
  snapshotTable: Pick<Qcow2Header, 'snapshots' | 'snapshotsOffset'>;
  /** The data file was handed out (`flatFile`): what lies past its known end is the guest's. Changed by flat-file.ts alone. */
  isFlat = false;
  /** Called with the first and last host cluster of a compressed cluster that is unmapped; compressed-write.ts sets it. */
  compressedUnmapped: (first: HostCluster, last: HostCluster) => void = () => undefined;
  /** Unmapped since the last checkpoint began; checkpoint.ts takes it. */
  unmapped: ClusterRun[] = [];
  readonly #maxDirtyBytes: number;

  private constructor(parts: {
    request: OpenRequest;
    header: Qcow2Header;
    refcounts: Refcounts;
    map: ClusterMap;
    metadata: MetadataClusters;
    data: HostData;
    dataFile: Node | null;
    checkpoint: () => Promise<void>;
  }) {
    const { request, header } = parts;
    this.request = request;
    this.header = header;
    this.file = request.file;
    this.data = parts.data;
    this.dataFile = parts.dataFile;
    this.clusterBytes = header.clusterBytes;
    this.subclusterBytes = header.subclusterBytes;
    this.lengthBytes = header.virtualSizeBytes;
    const { snapshots, snapshotsOffset } = header;
    this.snapshotTable = { snapshots, snapshotsOffset };
    this.refcounts = parts.refcounts;
    this.map = parts.map;
    this.metadata = parts.metadata;
    this.#maxDirtyBytes = Math.max(request.cacheBytes, 4 * header.clusterBytes);
    const { journal, log, path } = request;
    this.journaled = new JournaledChanges({
      journal,
      log,
      path,
      encode: encodeChanges,
    });
    this.schedule = new CheckpointSchedule({
      run: parts.checkpoint,
      maxDelayMs: CHECKPOINT_DELAY_MS,
      failed: (error) => log.error(path, `a checkpoint failed: ${toBlockError(error).describe()}`),
    });
    this.headerChanges = new HeaderChanges({
      file: this.file,
      path,
      log,
      owes: () => this.schedule.changed(),
      tell: (owed) => void this.tell([{ kind: 'header', owed }]),
      checkpoint: () => this.schedule.request(),
    });
  }

  /** Reads the tables. `checkpoint` is called one at a time. Errors: EIO. */
  static async load(
    request: OpenRequest,
    header: Qcow2Header,
    checkpoint: () => Promise<void>,
  ): Promise<ImageState> {
    const { file, path, cacheBytes } = request;
    const dataFile = await openExternalDataFile(request, header);
    const metadata = new MetadataClusters();
    const share = cacheBytes / 2;
    const refcounts = await Refcounts.open(header, request, share);
    const map = await ClusterMap.open({ file, path, header, cacheBytes: share, metadata });
    const { clusterBytes } = header;
    const addTable = (offset: number, lengthBytes: number): void =>
      metadata.claimRun(hostCluster(offset / clusterBytes), Math.ceil(lengthBytes / clusterBytes));
    addTable(0, clusterBytes);
    addTable(header.l1Offset, header.l1Entries * 8);
    addTable(header.refcountTableOffset, header.refcountTableClusters * clusterBytes);
    const encryption = encryptionHeaderPlace(header, file.lengthBytes, path);
    if (encryption !== null) addTable(encryption.offset, encryption.lengthBytes);
    for (const offset of refcounts.blockOffsets()) addTable(offset, clusterBytes);
    for (let i = 0; i < map.l1Entries; i++) {
      const { high, low } = map.l1Entry(i);
      const cluster = hostCluster(entryOffset(high, low) / clusterBytes);
      if (cluster > 0 && Number.isInteger(cluster) && !metadata.has(cluster))
        metadata.add(cluster, 'table');
    }
    // Last: it is closed with the image.
    const data = await openData(request, header, dataFile ?? file);
    const parts = { refcounts, map, metadata, data, dataFile };
    return new ImageState({ request, header, ...parts, checkpoint });
  }

  /** The file of guest clusters. */
  get clusterFile(): Node {
    return this.dataFile ?? this.file;
  }

  /** Guests see the data file's bytes whatever the tables say, so that they are what others read there. */
  get isDataFileRaw(): boolean {
    return this.dataFile !== null && (this.header.autoclear & AUTOCLEAR.rawDataFile) !== 0;
  }

  /** Guest data that was written, also by workers, survives a power cut when it returns. */
  async flushClusters(): Promise<void> {
    await this.dataFile?.flush();
  }

  get isDirty(): boolean {
    const { map, refcounts } = this;
    return (
      map.slices.dirtyBytes > 0 ||
      refcounts.cache.dirtyBytes > 0 ||
      map.isL1Dirty ||
      map.newTables.size > 0 ||
      refcounts.dirtyWords().length > 0 ||
      this.unmapped.length > 0 ||
      this.headerChanges.owed !== null
    );
  }

  /** Guest bytes of the backing's end; 0 without one. */
  get backingBytes(): number {
    return this.request.backing()?.lengthBytes ?? 0;
  }

  /**
   * Back pressure, before a request that changes mapping takes anything: waits for a checkpoint when too much is dirty.
   * Called without locks.
   */
  async admit(): Promise<void> {
    if (!this.admitsAtOnce()) await this.schedule.request();
  }

  /** False: too much is dirty. */
  admitsAtOnce(): boolean {
    const dirty = this.map.slices.dirtyBytes + this.refcounts.cache.dirtyBytes;
    if (dirty > this.#maxDirtyBytes) return false;
    if (dirty > this.#maxDirtyBytes / 2) this.schedule.requestInBackground();
    return true;
  }

  /**
   * Makes changes survive SIGKILL that are made in this turn of the event loop: they are in the journal when it returns, or on disk
   * where the journal cannot be written.
   */
  async record(changes: readonly Change[]): Promise<void> {
    if (this.tell(changes)) this.limitJournal();
    else await this.schedule.request();
  }

  /**
   * Changes that are made in this turn, before or after; `limitJournal` follows them. False when the journal does not take them: a
   * checkpoint has to take its place, and the image is behind until then.
   */
  tell(changes: readonly Change[]): boolean {
    this.schedule.changed();
    return this.journaled.tell(changes);
  }

  /** As `tell`, of changes that are not made when the journal does not take them. */
  offer(changes: readonly Change[]): boolean {
    this.schedule.changed();
    return this.journaled.offer(changes);
  }

  /**
   * Before any change of a guest is answered. What it has found, another one may have made that the journal has not taken: this one
   * waits for a checkpoint, too. Errors: those of the checkpoint.
   */
  async settled(): Promise<void> {
    const { journaled, schedule } = this;
    if (journaled.isBehind && !journaled.catchUp()) await schedule.request();
  }

  /** A checkpoint when the journal has become long. It takes up what is changed at this moment, and forgets all that is journaled. */
  limitJournal(): void {
    const pendingBytes = this.request.journal?.pendingBytes ?? 0;
    if (pendingBytes > CHECKPOINT_JOURNAL_BYTES) this.schedule.requestInBackground();
  }

  /** What an entry stood for is not used by it any more: its clusters are given back after the next checkpoint. */
  unmapEntry(old: TableEntry): void {
    // A data file's clusters are counted nowhere.
    if (this.dataFile !== null) return;
    if (isCompressed(old.high)) {
      const { hostOffset: start, maxBytes } = compressedPlace(
        old.high,
        old.low,
        this.header.clusterBits,
      );
      const first = clusterOfHostOffset(start, this.clusterBytes);
      const last = clusterOfHostOffset(hostOffset(start + maxBytes - 1), this.clusterBytes);
      this.unmapped.push({ first, count: last - first + 1 });
      this.compressedUnmapped(first, last);
      return;
    }
    const offset = entryOffset(old.high, old.low);
    if (offset === 0) return;
    const first = hostCluster(offset / this.clusterBytes);
    const before = this.unmapped.at(-1);
    if (before !== undefined && before.first + before.count === first) {
      this.unmapped[this.unmapped.length - 1] = { first: before.first, count: before.count + 1 };
    } else this.unmapped.push({ first, count: 1 });
  }

  /**
   * Writes neighbouring fields of the header, in one write within a sector. The caller goes on by them, and syncs. See
   * `HeaderChanges.write`.
   */
  async writeHeaderRange(
    at: number,
    fill: (view: DataView) => void,
    { lengthBytes, ...options }: HeaderRangeOptions,
  ): Promise<void> {
    await this.headerChanges.write(at, filled(fill, lengthBytes), options);
  }

  /** The same, durably. See `HeaderChanges.change`. */
  async writeHeaderDurably(
    at: number,
    fill: (view: DataView) => void,
    { lengthBytes, ...options }: HeaderRangeOptions,
  ): Promise<void> {
    await this.headerChanges.change(at, filled(fill, lengthBytes), options);
  }
}

const filled = (fill: (view: DataView) => void, lengthBytes: number): Uint8Array => {
  const bytes = new Uint8Array(lengthBytes);
  fill(viewOf(bytes));
  return bytes;
};
