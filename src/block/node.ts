/**
 * A node: one opened driver instance in the graph, with its children. The only way to do I/O on an image.
 *
 * The wrapper validates (`request-rules.ts`), the driver implements. It owns: what each request is to the driver, the epochs
 * of requests in flight, the dirty bitmaps, and the counters. A read is walked down the chain in `read-walk.ts`; what is
 * around every change, in `node-changes.ts`.
 */
import { assert } from '../base/assert.ts';
import { BlockError, toBlockError } from '../base/block-error.ts';
import { type GuestOffset, guestOffset, MAX_OFFSET } from '../base/units.ts';
import { SHORT_BYTES, writeAtOnce } from './at-once.ts';
import { type BlockStatus, blockStatusOf } from './block-status.ts';
import { type Interposer, interposed } from './content-change.ts';
import type { CopyOnRead } from './copy-on-read.ts';
import { DirtyTracking } from './dirty-tracking.ts';
import type {
  CopyInHow,
  DriverDescriptor,
  DriverInstance,
  Mapping,
  MappingChange,
  WriteZeroesOptions,
} from './driver.ts';
import { Epochs } from './epochs.ts';
import { FlushMark } from './flush-mark.ts';
import type { HostRange } from './host-range.ts';
import type { BackingLink } from './image-description.ts';
import type { InternalSnapshots } from './internal-snapshots.ts';
import { LateClose } from './late-close.ts';
import { NodeChanges } from './node-changes.ts';
import { readLayer } from './read-walk.ts';
import {
  cannot,
  checkRange,
  inContext,
  outOfRange,
  writableDriver,
  writeLimit,
} from './request-rules.ts';

export interface NodeFields {
  readonly name: string;
  readonly path: string;
  readonly descriptor: DriverDescriptor;
  readonly readOnly: boolean;
  /** The node below a format driver; null for a protocol node. */
  readonly file: Node | null;
}

export interface NodeStatistics {
  reads: number;
  readBytes: number;
  writes: number;
  writtenBytes: number;
  flushes: number;
}

export class Node {
  readonly name: string;
  readonly path: string;
  readonly descriptor: DriverDescriptor;
  readonly file: Node | null;
  readonly readOnly: boolean;
  readonly epochs = new Epochs();
  readonly statistics: NodeStatistics = {
    reads: 0,
    readBytes: 0,
    writes: 0,
    writtenBytes: 0,
    flushes: 0,
  };
  /** Opened by the driver through `OpenRequest.openDataFile`; the graph adds and closes them. */
  readonly dataFiles: Node[] = [];
  /** Called for each change of mapping, before anything it freed can be used again. */
  readonly mappingListeners = new Set<(change: MappingChange) => void>();
  /** Keeps what is read from the backing; null: it is read again each time. Set before the first request. */
  copyOnRead: CopyOnRead | null = null;
  /** Resolves when nobody outside this class (the data plane) still uses an older mapping. */
  shootdown: (() => Promise<void>) | null = null;
  /** Jobs that take part in each change of content, the outermost first. */
  readonly interposers: Interposer[] = [];
  /** Who uses its descriptor, and is not waited for when it is closed. */
  readonly lateClose = new LateClose();
  /** What records which ranges are written. */
  readonly dirtyBitmaps = new DirtyTracking(this);
  /** Whether a flush has left to do more than what the data plane has written. */
  readonly flushMark = new FlushMark();
  readonly #changes = new NodeChanges(this);
  #driver: DriverInstance | null = null;
  #backing: Node | null = null;
  #closed = false;

  constructor(fields: NodeFields) {
    this.name = fields.name;
    this.path = fields.path;
    this.descriptor = fields.descriptor;
    this.readOnly = fields.readOnly;
    this.file = fields.file;
  }

  /** The graph gives the instance that `open` returned, once. */
  attach(driver: DriverInstance): void {
    assert(this.#driver === null, 'a node gets its driver instance once');
    this.#driver = driver;
  }

  /** False before it is opened, and from when it begins to be closed: a pivot does that to the root of a view. */
  get isOpen(): boolean {
    return this.#driver !== null && !this.#closed;
  }

  get driver(): DriverInstance {
    if (this.#driver === null || this.#closed) {
      throw new BlockError({ kind: 'closed', message: 'the image is not open', node: this.name });
    }
    return this.#driver;
  }

  get backing(): Node | null {
    return this.#backing;
  }

  /** Graph changes only: inside a drained section, or before the first request. */
  set backing(node: Node | null) {
    this.#backing = node;
  }

  /** Bytes that the reader of this node sees. */
  get lengthBytes(): number {
    return this.driver.lengthBytes;
  }

  notifyMappingChanged(change: MappingChange): void {
    for (const listener of this.mappingListeners) listener(change);
  }

  /** See `OpenRequest.quiesce`. Never awaited inside a request of this node: it would wait for itself. */
  async quiesce(): Promise<void> {
    await Promise.all([this.epochs.quiesce(), this.shootdown?.()]);
  }

  /** No change of content that had begun at the call is in flight any more. Never awaited inside a request of this node. */
  async quiesceChanges(): Promise<void> {
    await Promise.all([this.#changes.quiesceContent(), this.shootdown?.()]);
  }

  /**
   * Fills the buffer. The range must lie inside the length (EINVAL). Errors: EIO and those of the host, with
   * this node's name.
   */
  read(offset: GuestOffset, buffer: Uint8Array): Promise<void> {
    return this.#read(offset, buffer, this.copyOnRead);
  }

  async #read(
    offset: GuestOffset,
    buffer: Uint8Array,
    copyOnRead: CopyOnRead | null,
  ): Promise<void> {
    if (buffer.length === 0) return;
    checkRange(this, 'read', offset, buffer.length, this.driver.lengthBytes);
    this.statistics.reads++;
    this.statistics.readBytes += buffer.length;
    copyOnRead?.noticeRead(offset, offset + buffer.length);
    const token = this.epochs.enter();
    try {
      await readLayer(this, offset, buffer, copyOnRead);
    } catch (error) {
      throw inContext(this, error, 'read', offset);
    } finally {
      this.epochs.leave(token);
    }
  }

  /**
   * Like `read`, for a reader that is longer than this node: what lies past the end is zeros. This is how a
   * backing node is read.
   */
  async readClipped(offset: GuestOffset, buffer: Uint8Array): Promise<void> {
    await this.read(offset, this.#insideOf(offset, buffer));
  }

  /** As `readClipped`, and what comes from the backing is not kept: for a driver that reads under locks of its own. */
  async readForCopy(offset: GuestOffset, buffer: Uint8Array): Promise<void> {
    await this.#read(offset, this.#insideOf(offset, buffer), null);
  }

  /** The part before the end; the rest is filled with zeros. */
  #insideOf(offset: GuestOffset, buffer: Uint8Array): Uint8Array {
    if (offset + buffer.length > this.lengthBytes) this.driver.noticeGrowth?.();
    const inside = Math.max(0, Math.min(buffer.length, this.lengthBytes - offset));
    buffer.fill(0, inside);
    return buffer.subarray(0, inside);
  }

  /**
   * As `write` (or `populate`) of what lies in a file of the host. False: it was not done, or not wholly, and has to be done
   * with the bytes; why, that will say.
   */
  async copyIn(offset: GuestOffset, source: HostRange, how: CopyInHow): Promise<boolean> {
    const driver = writableDriver(this, 'write');
    const { copyIn } = driver;
    // Who takes part in changes wants to see the bytes.
    if (copyIn === undefined || this.interposers.length > 0) return false;
    const lengthBytes = source.length;
    checkRange(this, 'write', offset, lengthBytes, writeLimit(driver));
    const run = () => copyIn.call(driver, offset, source, how);
    try {
      if (how === 'populate') await this.#changes.inFlight('populate', offset, run);
      else await this.#changes.ofContent('write', { offset, lengthBytes, bytes: null }, run);
    } catch {
      return false;
    }
    if (how === 'write') {
      this.statistics.writes++;
      this.statistics.writtenBytes += lengthBytes;
    }
    return true;
  }

  /** Writes the whole buffer. See `DriverInstance.write`. Errors: EROFS, EINVAL, ENOSPC, EIO. */
  async write(offset: GuestOffset, buffer: Uint8Array): Promise<void> {
    if (buffer.length === 0) return;
    // What is longer is better done by another thread, unless somebody waits for it here.
    if (buffer.length <= SHORT_BYTES && writeAtOnce(this, offset, buffer)) return;
    const driver = writableDriver(this, 'write');
    const write = driver.write;
    if (write === undefined) throw cannot(this, 'write');
    checkRange(this, 'write', offset, buffer.length, writeLimit(driver));
    this.statistics.writes++;
    this.statistics.writtenBytes += buffer.length;
    const change = { offset, lengthBytes: buffer.length, bytes: buffer };
    await this.#changes.ofContent('write', change, () => write.call(driver, offset, buffer));
  }

  /** One whole cluster. See `DriverInstance.writeCompressed`. Errors: EOPNOTSUPP where the format cannot. */
  async writeCompressed(offset: GuestOffset, buffer: Uint8Array): Promise<void> {
    const driver = writableDriver(this, 'write');
    const write = driver.writeCompressed;
    if (write === undefined) throw cannot(this, 'write compressed clusters');
    checkRange(this, 'write', offset, buffer.length, driver.lengthBytes);
    this.statistics.writes++;
    this.statistics.writtenBytes += buffer.length;
    const change = { offset, lengthBytes: buffer.length, bytes: buffer };
    await this.#changes.ofContent('write', change, () => write.call(driver, offset, buffer));
  }

  /** See `DriverInstance.populate`. Errors: EOPNOTSUPP where the format has no backing files. */
  async populate(
    offset: GuestOffset,
    lengthBytes: number,
    bytes: Uint8Array | null,
  ): Promise<void> {
    if (lengthBytes === 0) return;
    const driver = writableDriver(this, 'populate');
    const populate = driver.populate;
    if (populate === undefined) throw cannot(this, 'take a copy of its backing');
    checkRange(this, 'populate', offset, lengthBytes, driver.lengthBytes);
    assert(bytes === null || bytes.length === lengthBytes, 'a copy is as long as its range');
    await this.#changes.inFlight('populate', offset, () =>
      populate.call(driver, offset, lengthBytes, bytes),
    );
  }

  /** See `DriverInstance.makeEmpty`. Errors: EOPNOTSUPP where the format has no backing files. */
  async makeEmpty(): Promise<void> {
    const driver = writableDriver(this, 'make-empty');
    const { makeEmpty } = driver;
    if (makeEmpty === undefined) throw cannot(this, 'give up its content');
    await this.#changes.ofWhole('make-empty', makeEmpty.bind(driver));
  }

  /** See `DriverInstance.changeBacking`. Errors: EOPNOTSUPP where the format has no backing files. */
  async changeBacking(link: BackingLink | null): Promise<void> {
    const driver = writableDriver(this, 'change-backing');
    const { changeBacking } = driver;
    if (changeBacking === undefined) throw cannot(this, 'change its backing file');
    await this.#changes.ofWhole('change-backing', changeBacking.bind(driver, link));
  }

  /** The range reads as zeros afterwards. Writes zeros where the driver has no better way. */
  async writeZeroes(
    offset: GuestOffset,
    lengthBytes: number,
    options: WriteZeroesOptions,
  ): Promise<void> {
    if (lengthBytes === 0) return;
    const driver = writableDriver(this, 'write-zeroes');
    checkRange(this, 'write-zeroes', offset, lengthBytes, writeLimit(driver));
    this.statistics.writes++;
    await this.#changes.ofContent('write-zeroes', { offset, lengthBytes, bytes: null }, () =>
      driver.writeZeroes === undefined
        ? this.#writeZeroBytes(driver, offset, lengthBytes)
        : driver.writeZeroes(offset, lengthBytes, options),
    );
  }

  /** The range reads as zeros afterwards, and takes no space where the format can say so. */
  async discard(offset: GuestOffset, lengthBytes: number): Promise<void> {
    const driver = writableDriver(this, 'discard');
    if (driver.discard === undefined) {
      await this.writeZeroes(offset, lengthBytes, { unmap: true });
      return;
    }
    if (lengthBytes === 0) return;
    const discard = driver.discard;
    checkRange(this, 'discard', offset, lengthBytes, driver.lengthBytes);
    await this.#changes.ofContent('discard', { offset, lengthBytes, bytes: null }, () =>
      discard.call(driver, offset, lengthBytes),
    );
  }

  /** See `DriverInstance.allocate`. */
  async allocate(offset: GuestOffset, lengthBytes: number): Promise<void> {
    const driver = writableDriver(this, 'allocate');
    const allocate = driver.allocate;
    if (lengthBytes === 0 || allocate === undefined) return;
    checkRange(this, 'allocate', offset, lengthBytes, writeLimit(driver));
    await this.#changes.inFlight('allocate', offset, () =>
      allocate.call(driver, offset, lengthBytes),
    );
  }

  /** See `DriverInstance.preallocate`; without it, of formats that have no tables, as `allocate`. Errors: as `allocate`. */
  async preallocate(
    offset: GuestOffset,
    lengthBytes: number,
    options: { readonly space: boolean },
  ): Promise<void> {
    const driver = writableDriver(this, 'allocate');
    const { preallocate } = driver;
    if (preallocate === undefined) return this.allocate(offset, lengthBytes);
    if (lengthBytes === 0) return;
    checkRange(this, 'allocate', offset, lengthBytes, writeLimit(driver));
    const run = () => preallocate.call(driver, offset, lengthBytes, options);
    await this.#changes.inFlight('allocate', offset, run);
  }

  async flush(): Promise<void> {
    this.statistics.flushes++;
    if (this.readOnly) return;
    // Not an epoch: a flush may run a checkpoint, and a checkpoint may wait for the epochs.
    const ended = this.flushMark.flushBegins();
    try {
      await this.driver.flush();
      ended(true);
    } catch (error) {
      ended(false);
      throw inContext(this, error, 'flush', guestOffset(0));
    }
  }

  /** Drained (see driver.ts). Errors: EOPNOTSUPP where the driver cannot, ENOSPC, EIO. */
  async resize(lengthBytes: number): Promise<void> {
    const driver = writableDriver(this, 'resize');
    if (driver.resize === undefined) throw cannot(this, 'resize');
    if (!Number.isSafeInteger(lengthBytes) || lengthBytes < 0) {
      throw outOfRange(this, 'resize', lengthBytes, 0, MAX_OFFSET);
    }
    const resize = driver.resize.bind(driver, lengthBytes);
    const lost = driver.lengthBytes - lengthBytes;
    const change = { offset: guestOffset(lengthBytes), lengthBytes: lost, bytes: null };
    await this.#changes.ofWhole('resize', async () => {
      await (lost > 0 ? interposed(this.interposers, change, resize) : resize());
      this.dirtyBitmaps.resize(driver.lengthBytes);
    });
  }

  /** Runs one operation on the internal snapshots; `InternalSnapshots` says which are drained. Errors: EOPNOTSUPP without any. */
  async withSnapshots<T>(
    op: 'list' | 'create' | 'apply' | 'remove',
    run: (snapshots: InternalSnapshots) => Promise<T>,
  ): Promise<T> {
    const { snapshots } = op === 'list' ? this.driver : writableDriver(this, 'snapshot');
    if (snapshots === undefined) throw cannot(this, 'keep internal snapshots');
    const isChange = op !== 'list';
    if (isChange) this.flushMark.changeBegins();
    try {
      return await run(snapshots);
    } catch (error) {
      throw toBlockError(error, { op: 'snapshot', node: this.name, path: this.path });
    } finally {
      if (isChange) this.flushMark.changeEnded();
    }
  }

  /** Where a range is, in this layer. The first run only. */
  async mapping(offset: GuestOffset, lengthBytes: number): Promise<Mapping> {
    checkRange(this, 'map', offset, lengthBytes, this.lengthBytes);
    const token = this.epochs.enter();
    try {
      return await this.driver.mapping(offset, lengthBytes);
    } finally {
      this.epochs.leave(token);
    }
  }

  /** The first run of a range, looked up through the backing chain; with `base`, through the layers above it. */
  blockStatus(
    offset: GuestOffset,
    lengthBytes: number,
    base: Node | null = null,
  ): Promise<BlockStatus> {
    return blockStatusOf(this, offset, lengthBytes, base);
  }

  /** Closes this node's driver and the file below; the backing belongs to the graph. Idempotent. */
  async close(): Promise<void> {
    if (this.#closed) return;
    const driver = this.#driver;
    try {
      await this.copyOnRead?.settled();
      await this.epochs.quiesce();
      await driver?.settle?.();
      if (driver !== null) await this.lateClose.close(() => driver.close());
    } finally {
      this.#closed = true;
      this.dirtyBitmaps.closed();
      await this.file?.close();
    }
  }

  async #writeZeroBytes(
    driver: DriverInstance,
    offset: GuestOffset,
    lengthBytes: number,
  ): Promise<void> {
    const write = driver.write;
    if (write === undefined) throw cannot(this, 'write-zeroes');
    const zeroes = new Uint8Array(Math.min(lengthBytes, 1 << 20));
    for (let done = 0; done < lengthBytes; done += zeroes.length) {
      const part = zeroes.subarray(0, Math.min(zeroes.length, lengthBytes - done));
      await write.call(driver, guestOffset(offset + done), part);
    }
  }
}
