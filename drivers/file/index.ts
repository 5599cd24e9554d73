/**
 * The `file` protocol: a regular file or block device of the host, through Node's asynchronous file I/O.
 *
 * Owns one descriptor. Reads past the end are zeros, writes past the end grow the file.
 */
import { closeSync, constants, fstatSync, openSync } from 'node:fs';
import { type FileHandle, open, statfs } from 'node:fs/promises';
import { BlockError, toBlockError } from '../../src/base/block-error.ts';
import { type GuestOffset, type HostOffset, hostOffset } from '../../src/base/units.ts';
import { SHORT_BYTES } from '../../src/block/at-once.ts';
import type {
  DriverDescriptor,
  DriverInstance,
  Mapping,
  OpenPathRequest,
  WriteZeroesOptions,
} from '../../src/block/driver.ts';
import { type HostRange, notCopied } from '../../src/block/host-range.ts';
import {
  cloneFileRange,
  copyFileRange,
  endOf,
  FALLOC,
  fallocate,
  readAheadOf,
  SEEK,
  seekDataOrHole,
} from '../../src/os/linux.ts';
import { isLocalFileSystem } from '../../src/os/local-file-systems.ts';
import { type DirectIo, openDirect } from './direct-io.ts';
import { openLookedAt } from './looked-at.ts';
import { QuickIo } from './quick-io.ts';
import { giveBackSpaceOf, SpaceAhead } from './space-ahead.ts';

const ZERO_CHUNK_BYTES = 1 << 20;

interface HostFileOptions {
  readonly path: string;
  readonly lengthBytes: number;
  /** False: flushes are ignored. */
  readonly flushes: boolean;
  /** It has no holes, and its length is what it is. */
  readonly isBlockDevice: boolean;
  /** Reads and writes past the page cache; null: through it. */
  readonly direct: DirectIo | null;
  /** Type of the file system of a regular file on this machine, else null. */
  readonly localFileSystem: number | null;
  /** Of the file system, as stat(2) has it. */
  readonly device: number;
  readonly takesSpaceAhead: boolean;
}

class HostFile implements DriverInstance {
  readonly clusterBytes = 1;
  readonly backingLink = null;
  readonly growsOnWrite = true;
  readonly #handle: FileHandle;
  readonly #path: string;
  readonly #flushes: boolean;
  readonly #isBlockDevice: boolean;
  readonly #direct: DirectIo | null;
  /** Null where the file may be slow in ways that cannot be told beforehand. */
  readonly #quick: QuickIo | null;
  readonly #device: number;
  /** Null for a file that takes none. */
  readonly #ahead: SpaceAhead | null;
  /** Whose files the kernel does not copy from. */
  readonly #foreign = new WeakSet<DriverInstance>();
  /** Whose blocks this file cannot share. */
  readonly #unshared = new WeakSet<DriverInstance>();
  #lengthBytes: number;
  /** What the host's file system turned out not to have, so that it is asked once. */
  readonly #lacks = new Set<'punch' | 'zero' | 'allocate'>();
  /** A failed fdatasync has lost data for good: the kernel reports it once, this node for ever. */
  #flushFailure: BlockError | null = null;
  /** Null before the first flush, and where there is none. */
  #syncFd: number | null = null;

  constructor(handle: FileHandle, options: HostFileOptions) {
    this.#handle = handle;
    this.#path = options.path;
    this.#lengthBytes = options.lengthBytes;
    this.#flushes = options.flushes;
    const { direct, isBlockDevice, localFileSystem } = options;
    this.#isBlockDevice = isBlockDevice;
    this.#direct = direct;
    this.#quick =
      localFileSystem === null || direct !== null ? null : new QuickIo(handle.fd, localFileSystem);
    const { device } = options;
    this.#device = device;
    this.#ahead = options.takesSpaceAhead
      ? new SpaceAhead({ handle, device, lengthBytes: () => this.#lengthBytes })
      : null;
  }

  get lengthBytes(): number {
    return this.#lengthBytes;
  }

  get directFd(): number | undefined {
    return this.#direct?.fd;
  }

  get hostFd(): number | undefined {
    return this.#direct === null ? this.#handle.fd : undefined;
  }

  lend(end: HostOffset): boolean {
    return this.#ahead?.lend(end) !== false;
  }

  get syncFd(): number | undefined {
    // One that has failed has told what it had to tell: the next would succeed.
    return this.#flushFailure === null ? (this.#syncFd ?? undefined) : undefined;
  }

  syncHasFailed(error: BlockError): void {
    this.#flushFailure ??= error;
  }

  async reloadLength(): Promise<void> {
    const s = await this.#handle.stat();
    if (s.isFile()) this.#lengthBytes = s.size;
  }

  noticeGrowth(): void {
    // With direct I/O nobody else writes, and a write in flight may have padding.
    if (this.#isBlockDevice || this.#direct !== null) return;
    this.#lengthBytes = Math.max(this.#lengthBytes, fstatSync(this.#handle.fd).size);
  }

  mapping(_offset: GuestOffset, lengthBytes: number): Mapping {
    return { kind: 'opaque', lengthBytes };
  }

  async read(offset: GuestOffset, buffer: Uint8Array): Promise<void> {
    if (this.#quick?.read(buffer, offset) === true) return;
    if (this.#direct !== null) {
      buffer.fill(0, await this.#direct.read(buffer, offset));
      return;
    }
    let done = 0;
    while (done < buffer.length) {
      const { bytesRead } = await this.#handle.read(
        buffer,
        done,
        buffer.length - done,
        offset + done,
      );
      if (bytesRead === 0) break;
      done += bytesRead;
    }
    buffer.fill(0, done);
  }

  get worksAtOnce(): boolean {
    return this.#quick?.isRested === true;
  }

  readAtOnce(offset: GuestOffset, buffer: Uint8Array): boolean {
    try {
      return this.#quick?.read(buffer, offset) === true;
    } catch {
      // `read` meets it again.
      return false;
    }
  }

  writeAtOnce(offset: GuestOffset, buffer: Uint8Array): boolean {
    const end = offset + buffer.length;
    if (end > this.#lengthBytes && this.#ahead?.mayGrow === false) return false;
    try {
      if (this.#quick?.write(buffer, offset) !== true) return false;
    } catch {
      // `write` meets it again. Part of it may have made the file longer.
      this.noticeGrowth();
      return false;
    }
    this.#written(offset, end);
    return true;
  }

  async write(offset: GuestOffset, buffer: Uint8Array): Promise<void> {
    if (buffer.length <= SHORT_BYTES && this.writeAtOnce(offset, buffer)) return;
    const end = offset + buffer.length;
    try {
      await this.#withSpace(() => this.#reaching(end, () => this.#writeWaiting(offset, buffer)));
    } catch (error) {
      // Part of it may have made the file longer.
      this.noticeGrowth();
      throw error;
    }
    this.#written(offset, end);
  }

  #written(offset: number, end: number): void {
    this.#lengthBytes = Math.max(this.#lengthBytes, end);
    this.#ahead?.written(offset, end);
  }

  /** Runs what writes up to `end`, and may make the file longer by that. */
  #reaching<T>(end: number, run: () => Promise<T>): Promise<T> {
    return this.#ahead === null || end <= this.#lengthBytes ? run() : this.#ahead.grow(run);
  }

  /** Once more where the file system was full and had space that was taken ahead. */
  async #withSpace<T>(run: () => Promise<T>): Promise<T> {
    try {
      return await run();
    } catch (error) {
      if (toBlockError(error).kind !== 'no-space') throw error;
      if (!(await giveBackSpaceOf(this.#device))) throw error;
      return run();
    }
  }

  async #writeWaiting(offset: number, buffer: Uint8Array): Promise<void> {
    let done = 0;
    if (this.#direct !== null) {
      await this.#direct.write(buffer, offset);
      done = buffer.length;
    }
    while (done < buffer.length) {
      const { bytesWritten } = await this.#handle.write(
        buffer,
        done,
        buffer.length - done,
        offset + done,
      );
      if (bytesWritten === 0)
        throw this.#error('io', `wrote nothing of ${buffer.length - done} bytes`, offset);
      done += bytesWritten;
    }
  }

  // Of files on this machine alone: a server may take any time for it.
  async copyIn(offset: GuestOffset, source: HostRange): Promise<void> {
    const { driver } = source.file;
    const { hostFd } = driver;
    if (hostFd === undefined || this.#quick === null || this.#foreign.has(driver))
      throw notCopied();
    const end = offset + source.length;
    if (await this.#reaching(end, () => this.#cloneIn(offset, source, hostFd))) return;
    // All of it at once: the copy itself goes by 64 KiB, and is quicker into space that is there.
    await Promise.all([
      readAheadOf(hostFd, source.offset, source.length),
      this.#reserve(offset, source.length),
    ]);
    await this.#reaching(end, () => this.#copy(offset, source, hostFd));
    this.#lengthBytes = Math.max(this.#lengthBytes, end);
  }

  async #copy(offset: number, source: HostRange, hostFd: number): Promise<void> {
    for (let done = 0; done < source.length; ) {
      const from = { fd: hostFd, offset: source.offset + done };
      const to = { fd: this.#handle.fd, offset: offset + done };
      const copied = await copyFileRange(from, to, source.length - done);
      if (copied <= 0) {
        if (done === 0) this.#foreign.add(source.file.driver);
        // What was copied has made the file longer, and is not to be taken for new space.
        this.noticeGrowth();
        throw notCopied();
      }
      done += copied;
    }
  }

  async #cloneIn(offset: number, source: HostRange, hostFd: number): Promise<boolean> {
    const { driver } = source.file;
    if (this.#unshared.has(driver)) return false;
    const from = { fd: hostFd, offset: source.offset };
    const isCloned = await cloneFileRange(from, { fd: this.#handle.fd, offset }, source.length);
    if (isCloned) this.#lengthBytes = Math.max(this.#lengthBytes, offset + source.length);
    else this.#unshared.add(driver);
    return isCloned;
  }

  /** A wish: without it the write that follows takes longer, and meets the error. */
  async #reserve(offset: number, lengthBytes: number): Promise<void> {
    await this.#fallocate('allocate', FALLOC.KEEP_SIZE, offset, lengthBytes).catch(() => false);
  }

  async writeZeroes(
    offset: GuestOffset,
    lengthBytes: number,
    options: WriteZeroesOptions,
  ): Promise<void> {
    if (options.unmap && (await this.#punch(offset, lengthBytes))) return;
    if (await this.#zeroRange(offset, lengthBytes)) return;
    const zeroes = new Uint8Array(Math.min(lengthBytes, ZERO_CHUNK_BYTES));
    for (let done = 0; done < lengthBytes; done += zeroes.length) {
      const part = zeroes.subarray(0, Math.min(zeroes.length, lengthBytes - done));
      await this.write((offset + done) as GuestOffset, part);
    }
  }

  async discard(offset: GuestOffset, lengthBytes: number): Promise<void> {
    await this.writeZeroes(offset, lengthBytes, { unmap: true });
  }

  async allocate(offset: GuestOffset, lengthBytes: number): Promise<void> {
    if (await this.#fallocate('allocate', 0, offset, lengthBytes)) {
      this.#lengthBytes = Math.max(this.#lengthBytes, offset + lengthBytes);
    }
  }

  async stores(
    offset: HostOffset,
    lengthBytes: number,
  ): Promise<{ stored: boolean; lengthBytes: number }> {
    if (this.#isBlockDevice) return { stored: true, lengthBytes };
    const fd = this.#handle.fd;
    const data = seekDataOrHole(fd, offset, SEEK.DATA);
    if (data === null || data >= offset + lengthBytes) return { stored: false, lengthBytes };
    if (data > offset) return { stored: false, lengthBytes: data - offset };
    const hole = seekDataOrHole(fd, offset, SEEK.HOLE) ?? offset + lengthBytes;
    return { stored: true, lengthBytes: Math.min(hole - offset, lengthBytes) };
  }

  async flush(): Promise<void> {
    if (this.#flushFailure !== null) throw this.#flushFailure;
    if (!this.#flushes) return;
    // Before the sync: what is lost after it is told to both.
    this.#openForSyncs();
    try {
      await this.#handle.datasync();
    } catch (error) {
      this.#flushFailure ??= toBlockError(error, { op: 'flush', path: this.#path });
      throw this.#flushFailure;
    }
    // Of a sync beside this one, which may have been told of what this one was to bring to the disk.
    if (this.#flushFailure !== null) throw this.#flushFailure;
  }

  #openForSyncs(): void {
    if (this.#syncFd !== null || this.#quick === null) return;
    try {
      this.#syncFd = openSync(`/proc/self/fd/${this.#handle.fd}`, constants.O_RDONLY);
    } catch {
      // Whoever may not open it any more does without, and asks again at the next flush.
    }
  }

  async resize(lengthBytes: number): Promise<void> {
    const cut = (): Promise<void> => this.#handle.truncate(lengthBytes);
    // A shorter one too: giving back would make it as long as it was.
    await (this.#ahead === null ? cut() : this.#ahead.grow(cut));
    this.#lengthBytes = lengthBytes;
    this.#ahead?.resized();
  }

  async allocatedBytes(): Promise<number> {
    return this.#isBlockDevice ? this.#lengthBytes : (await this.#handle.stat()).blocks * 512;
  }

  async settle(): Promise<void> {
    await this.#ahead?.close();
  }

  async close(): Promise<void> {
    await this.settle();
    if (this.#syncFd !== null) closeSync(this.#syncFd);
    this.#syncFd = null;
    await (this.#direct ?? this.#handle).close();
  }

  /** Whether the range is a hole now. */
  async #punch(offset: GuestOffset, lengthBytes: number): Promise<boolean> {
    if (offset + lengthBytes > this.#lengthBytes) this.noticeGrowth();
    const inside = Math.min(lengthBytes, this.#lengthBytes - offset);
    if (inside < lengthBytes) await this.#reach(offset + lengthBytes);
    if (inside <= 0) return true;
    return this.#fallocate('punch', FALLOC.PUNCH_HOLE | FALLOC.KEEP_SIZE, offset, inside);
  }

  /** Makes the file so long at least. It never cuts off what is written beside it, as a truncation would. */
  async #reach(end: number): Promise<void> {
    if (await this.#fallocate('allocate', 0, end - 1, 1))
      this.#lengthBytes = Math.max(this.#lengthBytes, end);
    else await this.resize(end);
  }

  async #zeroRange(offset: GuestOffset, lengthBytes: number): Promise<boolean> {
    if (!(await this.#fallocate('zero', FALLOC.ZERO_RANGE, offset, lengthBytes))) return false;
    this.#lengthBytes = Math.max(this.#lengthBytes, offset + lengthBytes);
    return true;
  }

  async #fallocate(
    what: 'punch' | 'zero' | 'allocate',
    mode: number,
    offset: number,
    lengthBytes: number,
  ): Promise<boolean> {
    if (this.#lacks.has(what)) return false;
    try {
      await this.#withSpace(() =>
        this.#reaching(offset + lengthBytes, () =>
          fallocate(this.#handle.fd, mode, offset, lengthBytes),
        ),
      );
      return true;
    } catch (error) {
      const failure = toBlockError(error, { op: what, path: this.#path });
      if (failure.errno !== 'EOPNOTSUPP' && failure.errno !== 'ENODEV') throw failure;
      this.#lacks.add(what);
      return false;
    }
  }

  #error(kind: 'io', message: string, offset: number): BlockError {
    return new BlockError({ kind, message, path: this.#path, offset: hostOffset(offset) });
  }
}

const openPath = async (request: OpenPathRequest): Promise<DriverInstance> => {
  const { path, readOnly, create, cache, lookedAtOn = null } = request;
  const lookedAt = lookedAtOn === null ? null : openLookedAt(path, lookedAtOn);
  if (lookedAt !== null) return lookedAt;
  let flags = readOnly ? constants.O_RDONLY : constants.O_RDWR;
  if (create) flags |= constants.O_CREAT | constants.O_EXCL;
  const direct = cache === 'none' ? await openDirect(path, flags) : null;
  const handle = direct?.handle ?? (await openCached(path, flags));
  try {
    const s = await handle.stat();
    const isBlockDevice = s.isBlockDevice();
    const lengthBytes = isBlockDevice ? endOf(handle.fd) : s.size;
    const { type } = await statfs(path);
    const localFileSystem = s.isFile() && isLocalFileSystem(type) ? type : null;
    const takesSpaceAhead =
      request.growsHereAlone === true && !readOnly && direct === null && localFileSystem !== null;
    return new HostFile(handle, {
      path,
      lengthBytes,
      flushes: cache !== 'unsafe',
      direct,
      isBlockDevice,
      localFileSystem,
      device: s.dev,
      takesSpaceAhead,
    });
  } catch (error) {
    await (direct ?? handle).close();
    throw toBlockError(error, { op: 'open', path });
  }
};

const openCached = (path: string, flags: number): Promise<FileHandle> =>
  open(path, flags, 0o644).catch((error: unknown) => {
    throw toBlockError(error, { op: 'open', path });
  });

export const file: DriverDescriptor = {
  name: 'file',
  role: 'protocol',
  capabilities: {
    write: true,
    backing: false,
    zeroWithoutSpace: true,
    discard: true,
    grow: true,
    shrink: true,
    create: true,
    check: false,
    repair: false,
    internalSnapshots: false,
    compressedWrite: false,
  },
  createOptions: [],
  openPath,
};
