/**
 * Short reads and writes of what lies in the host's page cache, done at once instead of on another thread: the thread's
 * two wake-ups cost some 60 us, the copy itself 1 to 20.
 *
 * The event loop must not wait for a disk or a server. So: only file systems that live on this machine; reads only of
 * pages that are cached (or of tmpfs, which has no others); writes only of whole pages, which need none read; and a file
 * whose calls were slow is left alone for a while.
 */
import { readSync, writeSync } from 'node:fs';
import { BlockError } from '../../src/base/block-error.ts';
import { QuickPace } from '../../src/base/quick-pace.ts';
import { SHORT_BYTES } from '../../src/block/at-once.ts';
import { addressOf } from '../../src/os/c-library.ts';
import { readCached } from '../../src/os/file-ranges.ts';
import { isMemoryFileSystem } from '../../src/os/local-file-systems.ts';
import { timesWaited } from '../../src/os/process.ts';

const PACE = { firstRestMs: 100, lastRestMs: 10_000, timesWaited } as const;
const PAGE_BYTES = 4096;
/** Of what somebody asks to have done at once: as long as a request can be. */
const MAX_ASKED_BYTES = 1 << 20;

/** Memory that does not move, for reads of cached pages into memory that may. */
const bounce = new Uint8Array(new SharedArrayBuffer(SHORT_BYTES));
const bounceAddress = addressOf(bounce);
/** Where shared memory begins: it stays there. */
const addresses = new WeakMap<SharedArrayBuffer, number>();

/** Of shared memory; null of other memory. */
const steadyAddressOf = (bytes: Uint8Array): number | null => {
  const { buffer, byteOffset } = bytes;
  if (!(buffer instanceof SharedArrayBuffer)) return null;
  let address = addresses.get(buffer);
  if (address === undefined) {
    address = addressOf(new Uint8Array(buffer));
    addresses.set(buffer, address);
  }
  return address + byteOffset;
};

export class QuickIo {
  readonly #fd: number;
  readonly #isMemory: boolean;
  readonly #pace = new QuickPace(PACE);

  /** `fileSystem`: the type of a local one. */
  constructor(fd: number, fileSystem: number) {
    this.#fd = fd;
    this.#isMemory = isMemoryFileSystem(fileSystem);
  }

  /** It was not slow lately. */
  get isRested(): boolean {
    return this.#pace.mayTry();
  }

  /** Fills the buffer. False: it holds anything, read it the long way. Errors: those of read(2). */
  read(buffer: Uint8Array, offset: number): boolean {
    const { length } = buffer;
    if (length > SHORT_BYTES || !this.#mayTry(length)) return false;
    if (this.#isMemory)
      return this.#pace.timed(() => readSync(this.#fd, buffer, 0, length, offset)) === length;
    const steady = steadyAddressOf(buffer);
    const address = steady ?? bounceAddress;
    if (this.#pace.timed(() => readCached(this.#fd, address, length, offset)) !== length)
      return false;
    if (steady === null) buffer.set(bounce.subarray(0, length));
    return true;
  }

  /** Writes all of the buffer. False: write it the long way. Errors: those of write(2), and when only part of it was written. */
  write(buffer: Uint8Array, offset: number): boolean {
    const { length } = buffer;
    if (offset % PAGE_BYTES !== 0 || length % PAGE_BYTES !== 0 || !this.#mayTry(length))
      return false;
    const written = this.#pace.timed(() => writeSync(this.#fd, buffer, 0, length, offset));
    if (written === length) return true;
    throw new BlockError({ kind: 'io', message: `wrote ${written} of ${length} bytes`, offset });
  }

  #mayTry(lengthBytes: number): boolean {
    return lengthBytes > 0 && lengthBytes <= MAX_ASKED_BYTES && this.isRested;
  }
}
