/**
 * Holes and space of a host file, by fallocate(2): punching, zeroing, allocating, and where its data is. What the host's file system
 * turned out not to have is not asked for again; the answer is false then, and the caller does it another way.
 */
import type { FileHandle } from 'node:fs/promises';
import { toBlockError } from '../../src/base/block-error.ts';
import { FALLOC, fallocate, SEEK, seekDataOrHole } from '../../src/os/file-ranges.ts';
import type { FileLength } from './file-length.ts';

type What = 'punch' | 'zero' | 'allocate';

export interface HolesOptions {
  readonly handle: FileHandle;
  readonly path: string;
  readonly length: FileLength;
  /** As `DriverInstance.write`. */
  readonly write: (offset: number, bytes: Uint8Array) => Promise<void>;
}

/** Errors of all of it: those of fallocate(2), ENOSPC, EIO. */
export class Holes {
  readonly #handle: FileHandle;
  readonly #path: string;
  readonly #length: FileLength;
  readonly #write: HolesOptions['write'];
  /** What the host's file system turned out not to have, so that it is asked once. */
  readonly #lacks = new Set<What>();

  constructor({ handle, path, length, write }: HolesOptions) {
    this.#handle = handle;
    this.#path = path;
    this.#length = length;
    this.#write = write;
  }

  /** Whether the range, inside of the file, is a hole now. */
  async punch(offset: number, lengthBytes: number): Promise<boolean> {
    return this.#fallocate('punch', FALLOC.PUNCH_HOLE | FALLOC.KEEP_SIZE, offset, lengthBytes);
  }

  /** Whether the range reads as zeros now, and has its space. */
  async zero(offset: number, lengthBytes: number): Promise<boolean> {
    if (!(await this.#fallocate('zero', FALLOC.ZERO_RANGE, offset, lengthBytes))) return false;
    this.#length.reached(offset + lengthBytes);
    return true;
  }

  /** Whether the range has its space now. It is inside of the file then. */
  async allocate(offset: number, lengthBytes: number): Promise<boolean> {
    if (!(await this.#fallocate('allocate', 0, offset, lengthBytes))) return false;
    this.#length.reached(offset + lengthBytes);
    return true;
  }

  /**
   * Makes the file so long at least, for a request whose range ends there and is to read as zeros. A truncation could cut off what is
   * written beside it; a zero in the last byte of that range takes nothing from anybody: who writes there at the same time
   * meets this request anyway.
   */
  async reach(end: number): Promise<void> {
    this.#length.noticeGrowth();
    if (end <= this.#length.bytes) return;
    if (!(await this.allocate(end - 1, 1))) await this.#write(end - 1, new Uint8Array(1));
  }

  /**
   * A wish: without it the write that follows takes longer, and meets the error. The file's length stays; past it space is taken only
   * where it is given back when no write follows.
   */
  async reserve(offset: number, lengthBytes: number): Promise<void> {
    const { bytes, givesBackSpace } = this.#length;
    const length = givesBackSpace ? lengthBytes : Math.min(lengthBytes, bytes - offset);
    if (length <= 0) return;
    await this.#fallocate('allocate', FALLOC.KEEP_SIZE, offset, length).catch(() => false);
  }

  /** See `DriverInstance.stores`. Of a regular file. */
  stores(offset: number, lengthBytes: number): { stored: boolean; lengthBytes: number } {
    const fd = this.#handle.fd;
    const data = seekDataOrHole(fd, offset, SEEK.DATA);
    if (data === null || data >= offset + lengthBytes) return { stored: false, lengthBytes };
    if (data > offset) return { stored: false, lengthBytes: data - offset };
    const hole = seekDataOrHole(fd, offset, SEEK.HOLE) ?? offset + lengthBytes;
    return { stored: true, lengthBytes: Math.min(hole - offset, lengthBytes) };
  }

  async #fallocate(
    what: What,
    mode: number,
    offset: number,
    lengthBytes: number,
  ): Promise<boolean> {
    if (this.#lacks.has(what)) return false;
    try {
      await this.#length.reachingWithSpace(offset + lengthBytes, () =>
        fallocate(this.#handle.fd, mode, offset, lengthBytes),
      );
      return true;
    } catch (error) {
      const failure = toBlockError(error, { op: what, path: this.#path });
      if (failure.errno !== 'EOPNOTSUPP' && failure.errno !== 'ENODEV') throw failure;
      this.#lacks.add(what);
      return false;
    }
  }
}
