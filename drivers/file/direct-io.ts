/**
 * I/O of a host file past the page cache (`--cache none`): O_DIRECT wants offset, length and memory aligned.
 *
 * An aligned request goes as it is; an unaligned read through aligned memory. An unaligned write goes through the page
 * cache, on a descriptor of its own: so the file never gets longer than what was written, not even for a moment. The
 * kernel keeps both ways coherent as long as nobody writes the same block both ways at the same time: every write locks
 * the blocks that it touches.
 */
import { constants } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { BlockError, toBlockError } from '../../src/base/block-error.ts';
import { alignDown, alignUp } from '../../src/base/range.ts';
import { DIRECT_BLOCK_BYTES } from '../../src/block/driver.ts';
import { RangeLocks } from '../../src/block/range-locks.ts';
import { addressOf } from '../../src/os/c-library.ts';

/** Read at once through aligned memory. */
const BOUNCE_BYTES = 256 << 10;
const MAX_KEPT_BOUNCES = 8;

/** Opens a file for direct I/O. Errors: EOPNOTSUPP, naming the option, where its file system has none; those of open(2). */
export const openDirect = async (path: string, flags: number): Promise<DirectIo> => {
  let direct: FileHandle;
  try {
    direct = await open(path, flags | constants.O_DIRECT, 0o644);
  } catch (error) {
    const failure = toBlockError(error, { op: 'open', path });
    if (failure.errno !== 'EINVAL') throw failure;
    throw new BlockError({
      kind: 'unsupported',
      message: 'its file system has no direct I/O',
      hint: 'mount with --cache writeback',
      path,
      op: 'open',
    });
  }
  try {
    const rest = flags & ~(constants.O_CREAT | constants.O_EXCL);
    return new DirectIo(direct, await open(path, rest));
  } catch (error) {
    await direct.close();
    throw toBlockError(error, { op: 'open', path });
  }
};

export class DirectIo {
  readonly #direct: FileHandle;
  /** For what is not aligned, and for everything that is no read or write. */
  readonly handle: FileHandle;
  readonly #locks = new RangeLocks();
  readonly #bounces: Uint8Array[] = [];
  readonly #addresses = new WeakMap<ArrayBufferLike, number>();

  constructor(direct: FileHandle, handle: FileHandle) {
    this.#direct = direct;
    this.handle = handle;
  }

  /** Reads blocks only. */
  get fd(): number {
    return this.#direct.fd;
  }

  /** Reads to the start of the buffer; fewer bytes than it has where the file ends. Errors: those of read(2). */
  async read(buffer: Uint8Array, offset: number): Promise<number> {
    if (this.#isAligned(buffer, offset)) return readFully(this.#direct, buffer, offset);
    const bounce = this.#bounces.pop() ?? alignedMemory(BOUNCE_BYTES);
    try {
      for (let done = 0; done < buffer.length; ) {
        const start = alignDown(offset + done, DIRECT_BLOCK_BYTES);
        const skip = offset + done - start;
        const wanted = Math.min(buffer.length - done, bounce.length - skip);
        const window = bounce.subarray(0, alignUp(skip + wanted, DIRECT_BLOCK_BYTES));
        const got = Math.min(wanted, (await readFully(this.#direct, window, start)) - skip);
        if (got > 0) buffer.set(bounce.subarray(skip, skip + got), done);
        done += Math.max(0, got);
        if (got < wanted) return done;
      }
      return buffer.length;
    } finally {
      if (this.#bounces.length < MAX_KEPT_BOUNCES) this.#bounces.push(bounce);
    }
  }

  /** Writes the whole buffer. Errors: those of write(2). */
  async write(buffer: Uint8Array, offset: number): Promise<void> {
    const start = alignDown(offset, DIRECT_BLOCK_BYTES);
    const end = alignUp(offset + buffer.length, DIRECT_BLOCK_BYTES);
    const lock = await this.#locks.acquire({ start, end });
    try {
      const handle = this.#isAligned(buffer, offset) ? this.#direct : this.handle;
      for (let done = 0; done < buffer.length; ) {
        const rest = buffer.length - done;
        // What is left of a short write may not be aligned any more.
        const to = done % DIRECT_BLOCK_BYTES === 0 ? handle : this.handle;
        const { bytesWritten } = await to.write(buffer, done, rest, offset + done);
        if (bytesWritten === 0) throw new BlockError({ kind: 'io', message: 'wrote nothing' });
        done += bytesWritten;
      }
    } finally {
      lock.release();
    }
  }

  async close(): Promise<void> {
    await Promise.all([this.#direct.close(), this.handle.close()]);
  }

  #isAligned(buffer: Uint8Array, offset: number): boolean {
    if (offset % DIRECT_BLOCK_BYTES !== 0 || buffer.length % DIRECT_BLOCK_BYTES !== 0) return false;
    // Where memory lies does not change; asking costs more than the rest of this.
    let base = this.#addresses.get(buffer.buffer);
    if (base === undefined) {
      base = addressOf(buffer) - buffer.byteOffset;
      this.#addresses.set(buffer.buffer, base);
    }
    return (base + buffer.byteOffset) % DIRECT_BLOCK_BYTES === 0;
  }
}

const alignedMemory = (lengthBytes: number): Uint8Array => {
  const memory = new Uint8Array(lengthBytes + DIRECT_BLOCK_BYTES);
  const address = addressOf(memory);
  return memory.subarray(alignUp(address, DIRECT_BLOCK_BYTES) - address).subarray(0, lengthBytes);
};

/** Until the buffer is full or the file ends. */
const readFully = async (
  handle: FileHandle,
  buffer: Uint8Array,
  offset: number,
): Promise<number> => {
  let done = 0;
  while (done < buffer.length) {
    const { bytesRead } = await handle.read(buffer, done, buffer.length - done, offset + done);
    done += bytesRead;
    // A piece that is not whole blocks was the last of the file; what follows it could not be asked for.
    if (bytesRead === 0 || done % DIRECT_BLOCK_BYTES !== 0) break;
  }
  return done;
};
