/**
 * Short reads and writes of what lies in the host's page cache, done at once instead of on another thread: the thread's
 * two wake-ups cost some 60 us, the copy itself 1 to 20.
 *
 * The event loop must not wait for a disk or a server. So: only file systems that live on this machine; reads only of
 * pages that are cached (or of tmpfs, which has no others); writes only of whole pages, which need none read; and a file
 * that was slow once is left alone for a while.
 */
import { readSync, writeSync } from 'node:fs';
import { addressOf, readCached } from '../../src/os/linux.ts';

/** Types of statfs(2). */
const TMPFS = 0x01021994;
/** And: ext2 to ext4, XFS, Btrfs, F2FS, overlayfs. */
const LOCAL_FILE_SYSTEMS = new Set([0xef53, 0x58465342, 0x9123683e, TMPFS, 0xf2f52010, 0x794c7630]);
const PAGE_BYTES = 4096;
export const MAX_QUICK_BYTES = 128 << 10;
const SLOW_MS = 2;
const FIRST_REST_MS = 100;
const LAST_REST_MS = 10_000;

/** Memory that does not move, for reads of cached pages. */
const bounce = new Uint8Array(new SharedArrayBuffer(MAX_QUICK_BYTES));
const bounceAddress = addressOf(bounce);

export const isLocalFileSystem = (type: number): boolean => LOCAL_FILE_SYSTEMS.has(type >>> 0);

export class QuickIo {
  readonly #fd: number;
  readonly #isMemory: boolean;
  #restMs = FIRST_REST_MS;
  #restsUntilMs = 0;

  /** `fileSystem`: the type of a local one. */
  constructor(fd: number, fileSystem: number) {
    this.#fd = fd;
    this.#isMemory = fileSystem === TMPFS;
  }

  /** Fills the buffer. False: nothing is known of it, read it the long way. Errors: those of read(2). */
  read(buffer: Uint8Array, offset: number): boolean {
    const { length } = buffer;
    if (!this.#mayTry(length)) return false;
    if (this.#isMemory)
      return this.#timed(() => readSync(this.#fd, buffer, 0, length, offset)) === length;
    if (this.#timed(() => readCached(this.#fd, bounceAddress, length, offset)) !== length)
      return false;
    buffer.set(bounce.subarray(0, length));
    return true;
  }

  /** Writes all of the buffer. False: write it the long way. Errors: those of write(2). */
  write(buffer: Uint8Array, offset: number): boolean {
    if (offset % PAGE_BYTES !== 0 || buffer.length % PAGE_BYTES !== 0) return false;
    if (!this.#mayTry(buffer.length)) return false;
    return (
      this.#timed(() => writeSync(this.#fd, buffer, 0, buffer.length, offset)) === buffer.length
    );
  }

  #mayTry(lengthBytes: number): boolean {
    if (lengthBytes === 0 || lengthBytes > MAX_QUICK_BYTES) return false;
    return this.#restsUntilMs === 0 || performance.now() >= this.#restsUntilMs;
  }

  #timed(run: () => number): number {
    const begun = performance.now();
    try {
      return run();
    } finally {
      const ended = performance.now();
      if (ended - begun > SLOW_MS) {
        this.#restsUntilMs = ended + this.#restMs;
        this.#restMs = Math.min(2 * this.#restMs, LAST_REST_MS);
      } else if (this.#restsUntilMs !== 0) {
        this.#restsUntilMs = 0;
        this.#restMs = FIRST_REST_MS;
      }
    }
  }
}
