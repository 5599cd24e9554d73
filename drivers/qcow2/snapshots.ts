/**
 * Internal snapshots: made, applied, deleted (specification: "Snapshots"). Drained: no request runs beside it.
 *
 * A snapshot is an L1 table of its own; everything that it names is counted once more, and is nobody's to write in place.
 * What is done in which order, and why, says snapshot-change.ts.
 */
import { present } from '../../src/base/assert.ts';
import { BlockError, invalidImage } from '../../src/base/block-error.ts';
import { viewOf, writeU64BE } from '../../src/base/byte-order.ts';
import { divideUp } from '../../src/base/range.ts';
import {
  guestOffset,
  type HostCluster,
  hostCluster,
  hostOffsetOfCluster,
} from '../../src/base/units.ts';
import type { SnapshotDescription } from '../../src/block/image-description.ts';
import type { InternalSnapshots, SnapshotRequest } from '../../src/block/internal-snapshots.ts';
import type { Allocation } from './allocator.ts';
import { CopiedFlags } from './copied-flags.ts';
import { entryOffset } from './entry.ts';
import {
  ENTRY_BYTES,
  HEADER,
  MAX_L1_BYTES,
  MAX_SNAPSHOT_TABLE_BYTES,
  MAX_SNAPSHOTS,
} from './layout.ts';
import { witnessOfL1 } from './owed-header.ts';
import { readSavedMetadata } from './saved-metadata.ts';
import { SharedRefcounts } from './shared-refcounts.ts';
import { SnapshotChange, type SnapshotChangeOptions } from './snapshot-change.ts';
import {
  carriedEntries,
  encodeSnapshot,
  nextSnapshotId,
  readSnapshotTable,
  type Snapshot,
} from './snapshot-table.ts';
import { type L1Table, TableWalk } from './table-walk.ts';

/** QEMU keeps no longer names. */
const MAX_NAME_BYTES = 255;

export interface SnapshotsOptions extends SnapshotChangeOptions {
  /** Host clusters mean something else now: drops what was unpacked from them. */
  readonly forgetUnpacked: () => void;
  /** Before the content is replaced: the image's dirty bitmaps are out of date then. */
  readonly holdBitmaps: () => Promise<void>;
}

/** The snapshot table as it is on disk. */
interface Table {
  readonly snapshots: readonly Snapshot[];
  readonly offset: number;
  readonly bytes: Uint8Array;
}

/** What one operation works with. */
interface Tools {
  readonly walk: TableWalk;
  readonly refcounts: SharedRefcounts;
  readonly flags: CopiedFlags;
}

export class Snapshots implements InternalSnapshots {
  readonly #options: SnapshotsOptions;
  readonly #change: SnapshotChange;

  constructor(options: SnapshotsOptions) {
    this.#options = options;
    this.#change = new SnapshotChange(options);
  }

  async list(): Promise<readonly SnapshotDescription[]> {
    const { snapshots } = await this.#read();
    return snapshots.map(({ description }) => description);
  }

  async create(request: SnapshotRequest): Promise<SnapshotDescription> {
    const { state, quiet } = this.#options;
    this.#refuseDataFile();
    await quiet();
    const old = await this.#read();
    const carried = carriedEntries(old.bytes, old.snapshots);
    const fields = {
      ...request,
      id: nextSnapshotId(old.snapshots),
      virtualSizeBytes: state.lengthBytes,
      l1Entries: state.map.l1Entries,
    };
    const entryBytes = encodeSnapshot({ ...fields, l1Offset: 0 }).length;
    this.#refuseUnfit(request, old, carried.length + entryBytes);
    const tools = this.#tools();
    const active = tools.walk.activeL1();
    await tools.walk.survey(active);
    let isShared = false;
    await this.#change.run({
      lengths: [active.view.byteLength, carried.length + entryBytes],
      prepare: async ([copy = null, table = null]) => {
        const l1Offset = copy === null ? 0 : hostOffsetOfCluster(copy.first, state.clusterBytes);
        await tools.refcounts.raise(active);
        isShared = true;
        await tools.flags.clear(active);
        await this.#writeActiveL1(active);
        await this.#change.write(copy, bytesOf(active));
        const entry = encodeSnapshot({ ...fields, l1Offset });
        await this.#change.write(table, Buffer.concat([carried, entry]));
      },
      undo: async () => {
        if (!isShared) return;
        await tools.refcounts.lower(active);
        await this.#correctFlags(tools);
      },
      commit: ([, table = null]) => this.#nameTable(table, old.snapshots.length + 1),
      finish: () => this.#free(tools, old.offset, old.bytes.length),
    });
    await readSavedMetadata(state);
    return present((await this.#read()).snapshots.at(-1), 'what was made is in the table')
      .description;
  }

  async apply(id: string): Promise<void> {
    const { quiet, holdBitmaps } = this.#options;
    this.#refuseDataFile();
    await holdBitmaps();
    await quiet();
    const snapshot = this.#find(await this.#read(), id);
    const tools = this.#tools();
    const saved = await tools.walk.snapshotL1(snapshot);
    const sizeBytes = snapshot.description.virtualSizeBytes;
    const bytes = new Uint8Array(this.#entriesFor(snapshot) * ENTRY_BYTES);
    const before = tools.walk.activeL1();
    await tools.walk.survey(saved);
    await tools.walk.survey(before);
    let isShared = false;
    await this.#change.run({
      lengths: [bytes.length],
      prepare: async ([table = null]) => {
        await tools.refcounts.raise(saved);
        isShared = true;
        await tools.flags.clear(saved);
        bytes.set(bytesOf(saved));
        await this.#change.write(table, bytes);
      },
      undo: async () => {
        if (isShared) await tools.refcounts.lower(saved);
      },
      commit: ([table = null]) => this.#nameL1(table, bytes, sizeBytes),
      finish: async () => {
        await tools.refcounts.lower(before);
        await this.#free(tools, before.offset, before.view.byteLength);
      },
    });
  }

  async remove(id: string): Promise<void> {
    const { state, quiet, forgetUnpacked } = this.#options;
    this.#refuseDataFile();
    await quiet();
    const old = await this.#read();
    const snapshot = this.#find(old, id);
    const tools = this.#tools();
    const saved = await tools.walk.snapshotL1(snapshot);
    await tools.walk.survey(saved);
    await tools.walk.survey(tools.walk.activeL1());
    const kept = old.snapshots.filter((other) => other !== snapshot);
    const bytes = carriedEntries(old.bytes, kept);
    await this.#change.run({
      lengths: [bytes.length],
      prepare: ([table = null]) => this.#change.write(table, bytes),
      undo: async () => undefined,
      commit: ([table = null]) => this.#nameTable(table, kept.length),
      finish: async () => {
        await tools.refcounts.lower(saved);
        await this.#free(tools, saved.offset, saved.view.byteLength);
        await this.#free(tools, old.offset, old.bytes.length);
        await this.#correctFlags(tools);
      },
    });
    await readSavedMetadata(state);
    forgetUnpacked();
  }

  #tools(): Tools {
    const { state, allocator } = this.#options;
    const walk = new TableWalk(state);
    const refcounts = new SharedRefcounts(state, allocator, walk);
    return { walk, refcounts, flags: new CopiedFlags(state, walk, refcounts) };
  }

  async #read(): Promise<Table> {
    const { file, lengthBytes, request, snapshotTable } = this.#options.state;
    const place = { ...snapshotTable, virtualSizeBytes: lengthBytes };
    const table = await readSnapshotTable(file, place, request.path);
    const bytes = new Uint8Array(table.lengthBytes);
    await file.readClipped(guestOffset(place.snapshotsOffset), bytes);
    return { snapshots: table.snapshots, offset: place.snapshotsOffset, bytes };
  }

  // The clusters of a data file have no refcounts.
  #refuseDataFile(): void {
    const { dataFile, request } = this.#options.state;
    if (dataFile === null) return;
    const message = 'has an external data file, and such an image has no internal snapshots';
    throw new BlockError({ kind: 'unsupported', message, path: request.path, op: 'snapshot' });
  }

  #find(table: Table, id: string): Snapshot {
    const found = table.snapshots.find(({ description }) => description.id === id);
    if (found !== undefined) return found;
    const { path } = this.#options.state.request;
    throw new BlockError({ kind: 'not-found', message: `has no snapshot with id '${id}'`, path });
  }

  #refuseUnfit(request: SnapshotRequest, table: Table, tableBytes: number): void {
    const { state } = this.#options;
    const refuse = (message: string): never => {
      const { path } = state.request;
      throw new BlockError({ kind: 'bad-request', errno: 'EFBIG', message, path, op: 'snapshot' });
    };
    const nameBytes = Buffer.byteLength(request.name);
    if (nameBytes > MAX_NAME_BYTES)
      refuse(`the snapshot's name has ${nameBytes} bytes, more than ${MAX_NAME_BYTES}`);
    if (table.snapshots.length >= MAX_SNAPSHOTS) refuse(`has ${MAX_SNAPSHOTS} snapshots already`);
    if (tableBytes > MAX_SNAPSHOT_TABLE_BYTES)
      refuse(`its snapshot table would pass ${MAX_SNAPSHOT_TABLE_BYTES} bytes`);
  }

  /** Of the L1 table that shows a snapshot. Errors: EIO kind invalid-image for a disk that none can hold. */
  #entriesFor({ description, l1Entries }: Snapshot): number {
    const { map, request } = this.#options.state;
    const needed = divideUp(description.virtualSizeBytes, map.tableSpanBytes);
    const entries = Math.max(l1Entries, needed);
    if (entries * ENTRY_BYTES <= MAX_L1_BYTES) return entries;
    const what = `its disk of ${description.virtualSizeBytes} bytes needs an L1 table of more than 32 MiB`;
    throw invalidImage(`snapshot '${description.name}': ${what}`, { path: request.path });
  }

  async #writeActiveL1(l1: L1Table): Promise<void> {
    const { file, map } = this.#options.state;
    const bytes = bytesOf(l1);
    if (bytes.length > 0) await file.write(guestOffset(map.l1Offset), bytes);
    map.moveL1(map.l1Offset, bytes.slice());
  }

  async #correctFlags({ walk, flags }: Tools): Promise<void> {
    await this.#change.sync();
    const active = walk.activeL1();
    await flags.correct(active);
    await this.#writeActiveL1(active);
  }

  async #free(tools: Tools, offset: number, lengthBytes: number): Promise<void> {
    const { clusterBytes } = this.#options.state;
    const count = divideUp(lengthBytes, clusterBytes);
    await tools.refcounts.lowerRun({ first: hostCluster(offset / clusterBytes), count });
  }

  async #nameTable(allocation: Allocation | null, snapshots: number): Promise<void> {
    const { state } = this.#options;
    const snapshotsOffset =
      allocation === null ? 0 : hostOffsetOfCluster(allocation.first, state.clusterBytes);
    await state.writeHeaderRange(
      HEADER.snapshots,
      (view) => {
        view.setUint32(0, snapshots);
        writeU64BE(view, 4, snapshotsOffset);
      },
      { lengthBytes: 12 },
    );
    state.snapshotTable = { snapshots, snapshotsOffset };
  }

  /** Size and L1 table of the active image. */
  async #nameL1(allocation: Allocation | null, l1: Uint8Array, sizeBytes: number): Promise<void> {
    const { state } = this.#options;
    const { map, metadata, clusterBytes } = state;
    const at = HEADER.size;
    const offset =
      allocation === null ? map.l1Offset : hostOffsetOfCluster(allocation.first, clusterBytes);
    await state.writeHeaderRange(
      at,
      (view) => {
        writeU64BE(view, HEADER.size - at, sizeBytes);
        view.setUint32(HEADER.cryptMethod - at, state.header.cryptMethod);
        view.setUint32(HEADER.l1Size - at, l1.length / ENTRY_BYTES);
        writeU64BE(view, HEADER.l1Offset - at, offset);
      },
      { lengthBytes: HEADER.l1Offset + 8 - at, witness: () => witnessOfL1(l1) },
    );
    const old = { offset: map.l1Offset, lengthBytes: map.l1Entries * ENTRY_BYTES };
    for (const cluster of tablesIn(viewOf(map.enlargedL1(map.l1Entries)), clusterBytes))
      metadata.remove(cluster);
    for (let done = 0; done < old.lengthBytes; done += clusterBytes)
      metadata.remove(hostCluster((old.offset + done) / clusterBytes));
    if (allocation !== null) metadata.addRun(allocation.first, allocation.count, 'other');
    for (const cluster of tablesIn(viewOf(l1), clusterBytes)) metadata.add(cluster, 'table');
    map.slices.clear();
    map.moveL1(offset, l1);
    state.lengthBytes = sizeBytes;
    this.#tellReplaced(Math.max(old.lengthBytes, l1.length));
  }

  /** In the turn in which the content becomes another: any of it may have changed. */
  #tellReplaced(l1Bytes: number): void {
    const { state, forgetUnpacked } = this.#options;
    const { request, lengthBytes, map } = state;
    forgetUnpacked();
    request.dirtyBitmaps.resize(lengthBytes);
    request.dirtyBitmaps.mark(0, lengthBytes);
    request.mappingChanged({
      start: guestOffset(0),
      lengthBytes: (l1Bytes / ENTRY_BYTES) * map.tableSpanBytes,
    });
  }
}

/** A copy. */
const bytesOf = ({ view }: L1Table): Uint8Array =>
  new Uint8Array(view.buffer, view.byteOffset, view.byteLength).slice();

function* tablesIn(l1: DataView, clusterBytes: number): Generator<HostCluster> {
  for (let at = 0; at < l1.byteLength; at += ENTRY_BYTES) {
    const offset = entryOffset(l1.getUint32(at), l1.getUint32(at + 4));
    if (offset !== 0) yield hostCluster(offset / clusterBytes);
  }
}
