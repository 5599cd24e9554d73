/**
 * Copies from other files of this host into one, which the kernel makes by itself: shared blocks where the file system has them, else
 * copy_file_range(2). What could not be shared or copied once is not tried again with the same file.
 */
import type { DriverInstance } from '../../src/block/driver.ts';
import { type HostRange, notCopied } from '../../src/block/host-range.ts';
import { cloneFileRange, copyFileRange, readAheadOf } from '../../src/os/linux.ts';
import type { FileLength } from './file-length.ts';
import type { Holes } from './holes.ts';

export interface HostCopiesOptions {
  readonly fd: number;
  readonly length: FileLength;
  readonly holes: Holes;
}

export class HostCopies {
  readonly #fd: number;
  readonly #length: FileLength;
  readonly #holes: Holes;
  /** Whose files the kernel does not copy from. */
  readonly #foreign = new WeakSet<DriverInstance>();
  /** Whose blocks this file cannot share. */
  readonly #unshared = new WeakSet<DriverInstance>();

  constructor({ fd, length, holes }: HostCopiesOptions) {
    this.#fd = fd;
    this.#length = length;
    this.#holes = holes;
  }

  /** See `DriverInstance.copyIn`. */
  async copyIn(offset: number, source: HostRange): Promise<void> {
    const { driver } = source.file;
    const { hostFd } = driver;
    if (hostFd === undefined || this.#foreign.has(driver)) throw notCopied();
    const end = offset + source.length;
    if (await this.#length.reaching(end, () => this.#clone(offset, source, hostFd))) return;
    // All of it at once: the copy itself goes by 64 KiB, and is quicker into space that is there.
    await Promise.all([
      readAheadOf(hostFd, source.offset, source.length),
      this.#holes.reserve(offset, source.length),
    ]);
    await this.#length.reaching(end, () => this.#copy(offset, source, hostFd));
    this.#length.reached(end);
  }

  async #copy(offset: number, source: HostRange, hostFd: number): Promise<void> {
    for (let done = 0; done < source.length; ) {
      const from = { fd: hostFd, offset: source.offset + done };
      const to = { fd: this.#fd, offset: offset + done };
      const copied = await copyFileRange(from, to, source.length - done);
      if (copied <= 0) {
        if (done === 0) this.#foreign.add(source.file.driver);
        // What was copied has made the file longer, and is not to be taken for new space.
        this.#length.noticeGrowth();
        throw notCopied();
      }
      done += copied;
    }
  }

  async #clone(offset: number, source: HostRange, hostFd: number): Promise<boolean> {
    const { driver } = source.file;
    if (this.#unshared.has(driver)) return false;
    const from = { fd: hostFd, offset: source.offset };
    const isCloned = await cloneFileRange(from, { fd: this.#fd, offset }, source.length);
    if (isCloned) this.#length.reached(offset + source.length);
    else this.#unshared.add(driver);
    return isCloned;
  }
}
