/**
 * A node: one opened driver instance in the graph, with its children. The only way to do I/O on an image.
 *
 * The wrapper validates, the driver implements. It owns: the range checks, the read-only rule, the walk of a
 * read through the backing chain, the epochs of requests in flight, the dirty bitmaps, and the counters.
 */
import { assert } from '../base/assert.ts';
import { BlockError, toBlockError } from '../base/block-error.ts';
import { type GuestOffset, guestOffset, MAX_OFFSET } from '../base/units.ts';
import { SHORT_BYTES, writeAtOnce } from './at-once.ts';
import { type BlockStatus, blockStatusOf } from './block-status.ts';
import { type ContentChange, type Interposer, interposed } from './content-change.ts';
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
import { HostRange } from './host-range.ts';
import type { BackingLink } from './image-description.ts';
import type { InternalSnapshots } from './internal-snapshots.ts';
import { LateClose } from './late-close.ts';

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
  /** Of changes of content alone; see `quiesceChanges`. */
  readonly #changes = new Epochs();
  /** Jobs that take part in each change of content, the outermost first. */
  readonly interposers: Interposer[] = [];
  /** Who uses its descriptor, and is not waited for when it is closed. */
  readonly lateClose = new LateClose();
  /** What records which ranges are written. */
  readonly dirtyBitmaps = new DirtyTracking(this);
  /** Whether a flush has left to do more than what the data plane has written. */
  readonly flushMark = new FlushMark();
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
    await Promise.all([this.#changes.quiesce(), this.shootdown?.()]);
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
    this.#checkRange('read', offset, buffer.length, this.driver.lengthBytes);
    this.statistics.reads++;
    this.statistics.readBytes += buffer.length;
    copyOnRead?.noticeRead(offset, offset + buffer.length);
    const token = this.epochs.enter();
    try {
      if (this.descriptor.role === 'protocol') await this.#readOwn(offset, buffer);
      else await this.#readMapped(offset, buffer, copyOnRead);
    } catch (error) {
      throw this.#inContext(error, 'read', offset);
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
   * Tells `use` where in a file of the host all of a range lies, as the reader of this node sees it; null where it is in
   * several places, in none, or not as it is. It stays there until `use` has ended. Errors: of reading metadata; those of `use`.
   */
  async withPlace<T>(
    offset: GuestOffset,
    lengthBytes: number,
    use: (place: HostRange | null) => Promise<T>,
  ): Promise<T> {
    if (lengthBytes === 0 || offset + lengthBytes > this.lengthBytes) return use(null);
    const token = this.epochs.enter();
    try {
      const m = await this.driver.mapping(offset, lengthBytes);
      if (m.lengthBytes < lengthBytes) return await use(null);
      if (m.kind === 'data' && m.file.driver.hostFd !== undefined) {
        const isInside = m.hostOffset + lengthBytes <= m.file.lengthBytes;
        return await use(isInside ? new HostRange(m.file, m.hostOffset, lengthBytes) : null);
      }
      if (m.kind === 'unallocated' && this.#backing !== null) {
        return await this.#backing.withPlace(offset, lengthBytes, use);
      }
      return await use(null);
    } finally {
      this.epochs.leave(token);
    }
  }

  /**
   * As `write` (or `populate`) of what lies in a file of the host. False: it was not done, or not wholly, and has to be done
   * with the bytes; why, that will say.
   */
  async copyIn(offset: GuestOffset, source: HostRange, how: CopyInHow): Promise<boolean> {
    const driver = this.#writable('write');
    const { copyIn } = driver;
    // Who takes part in changes wants to see the bytes.
    if (copyIn === undefined || this.interposers.length > 0) return false;
    const lengthBytes = source.length;
    this.#checkRange('write', offset, lengthBytes, this.#writeLimit(driver));
    const run = () => copyIn.call(driver, offset, source, how);
    try {
      if (how === 'populate') await this.#inFlight('populate', offset, run);
      else await this.#change('write', { offset, lengthBytes, bytes: null }, run);
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
    const driver = this.#writable('write');
    const write = driver.write;
    if (write === undefined) throw this.#cannot('write');
    this.#checkRange('write', offset, buffer.length, this.#writeLimit(driver));
    this.statistics.writes++;
    this.statistics.writtenBytes += buffer.length;
    const change = { offset, lengthBytes: buffer.length, bytes: buffer };
    await this.#change('write', change, () => write.call(driver, offset, buffer));
  }

  /** One whole cluster. See `DriverInstance.writeCompressed`. Errors: EOPNOTSUPP where the format cannot. */
  async writeCompressed(offset: GuestOffset, buffer: Uint8Array): Promise<void> {
    const driver = this.#writable('write');
    const write = driver.writeCompressed;
    if (write === undefined) throw this.#cannot('write compressed clusters');
    this.#checkRange('write', offset, buffer.length, driver.lengthBytes);
    this.statistics.writes++;
    this.statistics.writtenBytes += buffer.length;
    const change = { offset, lengthBytes: buffer.length, bytes: buffer };
    await this.#change('write', change, () => write.call(driver, offset, buffer));
  }

  /** See `DriverInstance.populate`. Errors: EOPNOTSUPP where the format has no backing files. */
  async populate(
    offset: GuestOffset,
    lengthBytes: number,
    bytes: Uint8Array | null,
  ): Promise<void> {
    if (lengthBytes === 0) return;
    const driver = this.#writable('populate');
    const populate = driver.populate;
    if (populate === undefined) throw this.#cannot('take a copy of its backing');
    this.#checkRange('populate', offset, lengthBytes, driver.lengthBytes);
    assert(bytes === null || bytes.length === lengthBytes, 'a copy is as long as its range');
    await this.#inFlight('populate', offset, () =>
      populate.call(driver, offset, lengthBytes, bytes),
    );
  }

  /** See `DriverInstance.makeEmpty`. Errors: EOPNOTSUPP where the format has no backing files. */
  async makeEmpty(): Promise<void> {
    const driver = this.#writable('make-empty');
    const { makeEmpty } = driver;
    if (makeEmpty === undefined) throw this.#cannot('give up its content');
    await this.#changeWhole('make-empty', makeEmpty.bind(driver));
  }

  /** See `DriverInstance.changeBacking`. Errors: EOPNOTSUPP where the format has no backing files. */
  async changeBacking(link: BackingLink | null): Promise<void> {
    const driver = this.#writable('change-backing');
    const { changeBacking } = driver;
    if (changeBacking === undefined) throw this.#cannot('change its backing file');
    await this.#changeWhole('change-backing', changeBacking.bind(driver, link));
  }

  /** The range reads as zeros afterwards. Writes zeros where the driver has no better way. */
  async writeZeroes(
    offset: GuestOffset,
    lengthBytes: number,
    options: WriteZeroesOptions,
  ): Promise<void> {
    if (lengthBytes === 0) return;
    const driver = this.#writable('write-zeroes');
    this.#checkRange('write-zeroes', offset, lengthBytes, this.#writeLimit(driver));
    this.statistics.writes++;
    await this.#change('write-zeroes', { offset, lengthBytes, bytes: null }, () =>
      driver.writeZeroes === undefined
        ? this.#writeZeroBytes(driver, offset, lengthBytes)
        : driver.writeZeroes(offset, lengthBytes, options),
    );
  }

  /** The range reads as zeros afterwards, and takes no space where the format can say so. */
  async discard(offset: GuestOffset, lengthBytes: number): Promise<void> {
    const driver = this.#writable('discard');
    if (driver.discard === undefined) {
      await this.writeZeroes(offset, lengthBytes, { unmap: true });
      return;
    }
    if (lengthBytes === 0) return;
    const discard = driver.discard;
    this.#checkRange('discard', offset, lengthBytes, driver.lengthBytes);
    await this.#change('discard', { offset, lengthBytes, bytes: null }, () =>
      discard.call(driver, offset, lengthBytes),
    );
  }

  /** See `DriverInstance.allocate`. */
  async allocate(offset: GuestOffset, lengthBytes: number): Promise<void> {
    const driver = this.#writable('allocate');
    const allocate = driver.allocate;
    if (lengthBytes === 0 || allocate === undefined) return;
    this.#checkRange('allocate', offset, lengthBytes, this.#writeLimit(driver));
    await this.#inFlight('allocate', offset, () => allocate.call(driver, offset, lengthBytes));
  }

  /** See `DriverInstance.preallocate`; without it, of formats that have no tables, as `allocate`. Errors: as `allocate`. */
  async preallocate(
    offset: GuestOffset,
    lengthBytes: number,
    options: { readonly space: boolean },
  ): Promise<void> {
    const driver = this.#writable('allocate');
    const { preallocate } = driver;
    if (preallocate === undefined) return this.allocate(offset, lengthBytes);
    if (lengthBytes === 0) return;
    this.#checkRange('allocate', offset, lengthBytes, this.#writeLimit(driver));
    const run = () => preallocate.call(driver, offset, lengthBytes, options);
    await this.#inFlight('allocate', offset, run);
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
      throw this.#inContext(error, 'flush', guestOffset(0));
    }
  }

  /** Drained (see driver.ts). Errors: EOPNOTSUPP where the driver cannot, ENOSPC, EIO. */
  async resize(lengthBytes: number): Promise<void> {
    const driver = this.#writable('resize');
    if (driver.resize === undefined) throw this.#cannot('resize');
    if (!Number.isSafeInteger(lengthBytes) || lengthBytes < 0) {
      throw this.#outOfRange('resize', lengthBytes, 0, MAX_OFFSET);
    }
    const resize = driver.resize.bind(driver, lengthBytes);
    const lost = driver.lengthBytes - lengthBytes;
    const change = { offset: guestOffset(lengthBytes), lengthBytes: lost, bytes: null };
    await this.#changeWhole('resize', async () => {
      await (lost > 0 ? interposed(this.interposers, change, resize) : resize());
      this.dirtyBitmaps.resize(driver.lengthBytes);
    });
  }

  /** Runs one operation on the internal snapshots; `InternalSnapshots` says which are drained. Errors: EOPNOTSUPP without any. */
  async withSnapshots<T>(
    op: 'list' | 'create' | 'apply' | 'remove',
    run: (snapshots: InternalSnapshots) => Promise<T>,
  ): Promise<T> {
    const { snapshots } = op === 'list' ? this.driver : this.#writable('snapshot');
    if (snapshots === undefined) throw this.#cannot('keep internal snapshots');
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
    this.#checkRange('map', offset, lengthBytes, this.lengthBytes);
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

  async #readOwn(offset: GuestOffset, buffer: Uint8Array): Promise<void> {
    const driver = this.driver;
    assert(driver.read !== undefined, `${this.descriptor.name} reads what it maps as opaque`);
    await driver.read(offset, buffer);
  }

  // Pieces are read at the same time: a request over many fragments costs one round trip, not one each.
  async #readMapped(
    offset: GuestOffset,
    buffer: Uint8Array,
    copyOnRead: CopyOnRead | null,
  ): Promise<void> {
    const pieces: Promise<void>[] = [];
    let done = 0;
    try {
      while (done < buffer.length) {
        const at = guestOffset(offset + done);
        const found = this.driver.mapping(at, buffer.length - done);
        const m = found instanceof Promise ? await found : found;
        assert(
          m.lengthBytes > 0 && m.lengthBytes <= buffer.length - done,
          'a mapping covers at least one byte and no more than was asked',
        );
        const piece = buffer.subarray(done, done + m.lengthBytes);
        const pending = this.#readPiece(m, at, piece, copyOnRead);
        if (pending !== null) pieces.push(pending);
        done += m.lengthBytes;
      }
    } catch (error) {
      // The buffer goes back to the caller only when nothing writes to it any more.
      await Promise.allSettled(pieces);
      throw error;
    }
    if (pieces.length === 1) {
      await pieces[0];
      return;
    }
    const results = await Promise.allSettled(pieces);
    for (const r of results) if (r.status === 'rejected') throw r.reason;
  }

  #readPiece(
    m: Mapping,
    at: GuestOffset,
    piece: Uint8Array,
    copyOnRead: CopyOnRead | null,
  ): Promise<void> | null {
    switch (m.kind) {
      case 'data':
        return m.file.readClipped(guestOffset(m.hostOffset), piece);
      case 'opaque':
        return this.#readOwn(at, piece);
      case 'zero':
        piece.fill(0);
        return null;
      case 'unallocated':
        if (this.#backing !== null && at < this.#backing.lengthBytes) {
          return copyOnRead?.read(at, piece) ?? this.#backing.readClipped(at, piece);
        }
        piece.fill(0);
        return null;
    }
  }

  async #writeZeroBytes(
    driver: DriverInstance,
    offset: GuestOffset,
    lengthBytes: number,
  ): Promise<void> {
    const write = driver.write;
    if (write === undefined) throw this.#cannot('write-zeroes');
    const zeroes = new Uint8Array(Math.min(lengthBytes, 1 << 20));
    for (let done = 0; done < lengthBytes; done += zeroes.length) {
      const part = zeroes.subarray(0, Math.min(zeroes.length, lengthBytes - done));
      await write.call(driver, guestOffset(offset + done), part);
    }
  }

  /** A change of content: in the dirty bitmaps before it begins. */
  #change(op: string, change: ContentChange, run: () => Promise<void>): Promise<void> {
    const { offset, lengthBytes } = change;
    return interposed(this.interposers, change, () =>
      this.#inFlight(op, offset, async () => {
        const token = this.#changes.enter();
        try {
          this.dirtyBitmaps.mark(offset, lengthBytes);
          await run();
        } finally {
          this.#changes.leave(token);
        }
      }),
    );
  }

  async #inFlight(op: string, offset: GuestOffset, run: () => Promise<void>): Promise<void> {
    const token = this.epochs.enter();
    this.flushMark.changeBegins();
    try {
      await run();
    } catch (error) {
      throw this.#inContext(error, op, offset);
    } finally {
      this.flushMark.changeEnded();
      this.epochs.leave(token);
    }
  }

  /** A change of more than content, drained where `driver.ts` says so. */
  async #changeWhole(op: string, run: () => Promise<void>): Promise<void> {
    this.flushMark.changeBegins();
    try {
      await run();
    } catch (error) {
      throw this.#inContext(error, op, guestOffset(0));
    } finally {
      this.flushMark.changeEnded();
    }
  }

  #writable(op: string): DriverInstance {
    const driver = this.driver;
    if (this.readOnly) {
      throw new BlockError({
        kind: 'read-only',
        message: 'the image is open read-only',
        op,
        path: this.path,
      });
    }
    return driver;
  }

  #writeLimit(driver: DriverInstance): number {
    return driver.growsOnWrite === true ? MAX_OFFSET : driver.lengthBytes;
  }

  #checkRange(op: string, offset: number, lengthBytes: number, limit: number): void {
    if (offset >= 0 && lengthBytes >= 0 && offset + lengthBytes <= limit) return;
    throw this.#outOfRange(op, offset, lengthBytes, limit);
  }

  #outOfRange(op: string, offset: number, lengthBytes: number, limit: number): BlockError {
    const message = `${op} of ${lengthBytes} bytes reaches past the end (${limit} bytes)`;
    return new BlockError({ kind: 'bad-request', message, op, path: this.path, offset });
  }

  #cannot(op: string): BlockError {
    const message = `the format ${this.descriptor.name} cannot ${op}`;
    return new BlockError({ kind: 'unsupported', message, op, path: this.path });
  }

  #inContext(error: unknown, op: string, offset: GuestOffset): BlockError {
    return toBlockError(error, { op, node: this.name, path: this.path, offset });
  }
}
