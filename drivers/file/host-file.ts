/**
 * An opened file or block device of the host. Reads past the end are zeros, writes past the end grow the file. Its length, holes,
 * syncs and copies are parts of their own; direct I/O and the workers' syncs have a descriptor of their own besides that of the file.
 */
import type { FileHandle } from 'node:fs/promises';
import { BlockError, toBlockError } from '../../src/base/block-error.ts';
import {
  type GuestOffset,
  guestOffset,
  type HostOffset,
  hostOffset,
} from '../../src/base/units.ts';
import { SHORT_BYTES } from '../../src/block/at-once.ts';
import type { DriverInstance, Mapping, WriteZeroesOptions } from '../../src/block/driver.ts';
import { type HostRange, notCopied } from '../../src/block/host-range.ts';
import { isMemoryFileSystem } from '../../src/os/local-file-systems.ts';
import { copyThreads } from './copy-threads.ts';
import type { DirectIo } from './direct-io.ts';
import { FileLength } from './file-length.ts';
import { Holes, type HolesOptions } from './holes.ts';
import { HostCopies } from './host-copies.ts';
import { HostSyncs } from './host-syncs.ts';
import { QuickIo } from './quick-io.ts';

const ZERO_CHUNK_BYTES = 1 << 20;

export interface HostFileOptions {
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

export class HostFile implements DriverInstance {
  readonly clusterBytes = 1;
  readonly backingLink = null;
  readonly growsOnWrite = true;
  readonly isInMemory: boolean;
  readonly #handle: FileHandle;
  readonly #path: string;
  readonly #isBlockDevice: boolean;
  readonly #direct: DirectIo | null;
  /** Null where the file may be slow in ways that cannot be told beforehand. */
  readonly #quick: QuickIo | null;
  readonly #length: FileLength;
  readonly #holes: Holes;
  readonly #syncs: HostSyncs;
  /** Of files on this machine alone: a server may take any time for it. */
  readonly #copies: HostCopies | null;

  /** `handle` is closed with it. */
  constructor(handle: FileHandle, options: HostFileOptions) {
    const { path, direct, isBlockDevice, localFileSystem, flushes } = options;
    const { lengthBytes, device, takesSpaceAhead } = options;
    this.#handle = handle;
    this.#path = path;
    this.#isBlockDevice = isBlockDevice;
    this.#direct = direct;
    const quick = localFileSystem === null || direct !== null ? null : localFileSystem;
    this.#quick = quick === null ? null : new QuickIo(handle.fd, quick);
    // With direct I/O nobody else writes, and a write in flight may have padding.
    const growsUnseen = !isBlockDevice && direct === null;
    this.isInMemory = quick !== null && isMemoryFileSystem(quick);
    const { isInMemory } = this;
    const length = new FileLength({
      ...{ handle, lengthBytes, device, growsUnseen, takesSpaceAhead, isInMemory },
    });
    this.#length = length;
    const write: HolesOptions['write'] = (offset, bytes) => this.write(guestOffset(offset), bytes);
    const holes = new Holes({ handle, path, length, write });
    this.#holes = holes;
    this.#syncs = new HostSyncs({ handle, path, flushes, isShared: quick !== null });
    const parts = { fd: handle.fd, length, holes, isInMemory };
    this.#copies = quick === null ? null : new HostCopies(parts);
  }

  get lengthBytes(): number {
    return this.#length.bytes;
  }

  get directFd(): number | undefined {
    return this.#direct?.fd;
  }

  get hostFd(): number | undefined {
    return this.#direct === null ? this.#handle.fd : undefined;
  }

  lend(end: HostOffset): boolean {
    return this.#length.lend(end);
  }

  get syncFd(): number | undefined {
    return this.#syncs.fd;
  }

  syncHasFailed(error: BlockError): void {
    this.#syncs.hasFailed(error);
  }

  async reloadLength(): Promise<void> {
    await this.#length.reload();
  }

  noticeGrowth(): void {
    this.#length.noticeGrowth();
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
    if (!this.#length.mayReachAtOnce(end)) return false;
    try {
      if (this.#quick?.write(buffer, offset) !== true) return false;
    } catch {
      // `write` meets it again. Part of it may have made the file longer.
      this.noticeGrowth();
      return false;
    }
    this.#length.written(offset, end);
    return true;
  }

  async write(offset: GuestOffset, buffer: Uint8Array): Promise<void> {
    if (buffer.length <= SHORT_BYTES && this.writeAtOnce(offset, buffer)) return;
    const end = offset + buffer.length;
    try {
      await this.#length.reachingWithSpace(end, () => this.#writeWaiting(offset, buffer));
    } catch (error) {
      // Part of it may have made the file longer.
      this.noticeGrowth();
      throw error;
    }
    this.#length.written(offset, end);
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
      if (bytesWritten === 0) throw this.#wroteNothing(offset, buffer.length - done);
      done += bytesWritten;
    }
  }

  #wroteNothing(offset: number, leftBytes: number): BlockError {
    const message = `wrote nothing of ${leftBytes} bytes`;
    return new BlockError({
      kind: 'io',
      message,
      path: this.#path,
      offset: hostOffset(offset),
    });
  }

  expectCopies(count: number): void {
    if (this.isInMemory) copyThreads.start(count);
  }

  async copyIn(offset: GuestOffset, source: HostRange): Promise<void> {
    if (this.#copies === null) throw notCopied();
    await this.#copies.copyIn(offset, source);
  }

  async writeZeroes(
    offset: GuestOffset,
    lengthBytes: number,
    options: WriteZeroesOptions,
  ): Promise<void> {
    if (options.unmap) await this.#unmap(offset, lengthBytes);
    else await this.#zero(offset, lengthBytes);
  }

  /** What lies past the end reads as zeros: a full file system is no error there, and the file stays as long as it is. */
  async #unmap(offset: GuestOffset, lengthBytes: number): Promise<void> {
    const length = this.#length;
    const end = offset + lengthBytes;
    if (end > length.bytes) length.noticeGrowth();
    const inside = Math.min(lengthBytes, length.bytes - offset);
    if (inside > 0 && !(await this.#holes.punch(offset, inside))) await this.#zero(offset, inside);
    if (inside === lengthBytes) return;
    await this.#holes.reach(end).catch((error: unknown) => {
      if (toBlockError(error).kind !== 'no-space') throw error;
    });
  }

  async #zero(offset: GuestOffset, lengthBytes: number): Promise<void> {
    if (await this.#holes.zero(offset, lengthBytes)) return;
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
    await this.#holes.allocate(offset, lengthBytes);
  }

  async stores(
    offset: HostOffset,
    lengthBytes: number,
  ): Promise<{ stored: boolean; lengthBytes: number }> {
    if (this.#isBlockDevice) return { stored: true, lengthBytes };
    return this.#holes.stores(offset, lengthBytes);
  }

  async flush(): Promise<void> {
    await this.#syncs.flush();
  }

  async resize(lengthBytes: number): Promise<void> {
    await this.#length.resize(lengthBytes);
  }

  async allocatedBytes(): Promise<number> {
    return this.#isBlockDevice ? this.lengthBytes : (await this.#handle.stat()).blocks * 512;
  }

  async settle(): Promise<void> {
    await this.#length.settle();
  }

  async close(): Promise<void> {
    await this.settle();
    this.#syncs.close();
    await (this.#direct ?? this.#handle).close();
  }
}
