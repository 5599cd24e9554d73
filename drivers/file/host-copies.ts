/**
 * Copies from other files of this host into one, which the kernel makes by itself: shared blocks where the file system has them, else
 * copy_file_range(2). What it cannot do between two files is not tried again with them; what it could not do with one range says
 * nothing of the next.
 */
import { toBlockError } from '../../src/base/block-error.ts';
import type { ErrnoName } from '../../src/base/errno.ts';
import type { DriverInstance } from '../../src/block/driver.ts';
import { type HostRange, notCopied } from '../../src/block/host-range.ts';
import { cloneFileRange, copyFileRange } from '../../src/os/file-copies.ts';
import { readAheadOf } from '../../src/os/file-ranges.ts';
import type { FileLength } from './file-length.ts';
import type { Holes } from './holes.ts';
import { MemoryCopies } from './memory-copies.ts';

/** Whatever the range is: the kernel has no such call, or not for these file systems. */
const NEVER: ReadonlySet<ErrnoName> = new Set(['EOPNOTSUPP', 'EXDEV', 'ENOTTY', 'ENOSYS']);

export interface HostCopiesOptions {
  readonly fd: number;
  readonly length: FileLength;
  readonly holes: Holes;
  /** The file is on tmpfs. */
  readonly isInMemory: boolean;
}

export class HostCopies {
  readonly #fd: number;
  readonly #length: FileLength;
  readonly #holes: Holes;
  /** Whose files the kernel does not copy from. */
  readonly #foreign = new WeakSet<DriverInstance>();
  /** Whose blocks this file cannot share. */
  readonly #unshared = new WeakSet<DriverInstance>();
  /** Null: it is on a disk. */
  readonly #inMemory: MemoryCopies | null;

  constructor({ fd, length, holes, isInMemory }: HostCopiesOptions) {
    this.#fd = fd;
    this.#length = length;
    this.#holes = holes;
    this.#inMemory = isInMemory ? new MemoryCopies() : null;
  }

  /** See `DriverInstance.copyIn`. Errors: EIO; those of copy_file_range(2) for this range. */
  async copyIn(offset: number, source: HostRange): Promise<void> {
    const { driver } = source.file;
    const { hostFd } = driver;
    if (hostFd === undefined || this.#foreign.has(driver)) throw notCopied();
    try {
      await this.#cloneOrCopy(offset, source, hostFd);
    } catch (error) {
      // A part of it has made the file longer, and is not to be taken for new space.
      this.#length.noticeGrowth();
      throw error;
    }
    this.#length.reached(offset + source.length);
  }

  async #cloneOrCopy(offset: number, source: HostRange, hostFd: number): Promise<void> {
    const end = offset + source.length;
    if (await this.#length.reaching(end, () => this.#clone(offset, source, hostFd))) return;
    const copy = (): Promise<void> => this.#copy(offset, source, hostFd);
    if (this.#inMemory !== null) {
      // Always as what makes the file longer: one copy does it for all that are under way.
      await this.#length.reachingWithSpace(Number.POSITIVE_INFINITY, copy);
      return;
    }
    // All of it at once: the copy itself goes by 64 KiB, and is quicker into space that is there.
    await Promise.all([
      readAheadOf(hostFd, source.offset, source.length),
      this.#holes.reserve(offset, source.length),
    ]);
    await this.#length.reaching(end, copy);
  }

  async #copy(offset: number, source: HostRange, hostFd: number): Promise<void> {
    const copy = this.#inMemory?.copy.bind(this.#inMemory) ?? copyFileRange;
    for (let done = 0; done < source.length; ) {
      const from = { fd: hostFd, offset: source.offset + done };
      const to = { fd: this.#fd, offset: offset + done };
      const copied = await copy(from, to, source.length - done).catch((error: unknown) => {
        if (!isOfFiles(error)) throw error;
        this.#foreign.add(source.file.driver);
        throw notCopied();
      });
      // The source ends here.
      if (copied === 0) throw notCopied();
      done += copied;
    }
  }

  /** False: not wholly, and what there is of it may be copied over. Errors: EIO. */
  async #clone(offset: number, source: HostRange, hostFd: number): Promise<boolean> {
    const { driver } = source.file;
    if (this.#unshared.has(driver)) return false;
    try {
      const from = { fd: hostFd, offset: source.offset };
      await cloneFileRange(from, { fd: this.#fd, offset }, source.length);
      return true;
    } catch (error) {
      if (toBlockError(error).errno === 'EIO') throw error;
      if (isOfFiles(error)) this.#unshared.add(driver);
      return false;
    }
  }
}

/** Whether it was refused for the two files, and not for a range of them. */
const isOfFiles = (error: unknown): boolean => NEVER.has(toBlockError(error).errno);
