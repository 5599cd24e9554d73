/**
 * A regular file that is only looked at: opened, read at its start and closed again, thousands of them in one scan. All of it is
 * done at once while that is quick; `looks` (local-file-systems.ts) says when it is.
 */
import { closeSync, constants, fstatSync, openSync, read } from 'node:fs';
import { promisify } from 'node:util';
import { toBlockError } from '../../src/base/block-error.ts';
import type { GuestOffset } from '../../src/base/units.ts';
import type { DriverInstance, Mapping } from '../../src/block/driver.ts';
import { looks } from '../../src/os/local-file-systems.ts';
import { QuickIo } from './quick-io.ts';

const readAsync = promisify(read);
const BLOCK_BYTES = 512;

/** Null: it is to be opened the long way. `fileSystem`: type of a local one. Errors: those of open(2). */
export const openLookedAt = (path: string, fileSystem: number): DriverInstance | null => {
  if (!looks.mayTry()) return null;
  try {
    return looks.timed(() => {
      // What has taken the place of the file meanwhile may be anything, a pipe that nobody writes to, too.
      const fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
      const s = fstatSync(fd);
      if (s.isFile()) return new LookedAtFile(fd, s, fileSystem);
      closeSync(fd);
      return null;
    });
  } catch (error) {
    throw toBlockError(error, { op: 'open', path });
  }
};

class LookedAtFile implements DriverInstance {
  readonly clusterBytes = 1;
  readonly backingLink = null;
  readonly lengthBytes: number;
  readonly #fd: number;
  readonly #allocatedBytes: number;
  readonly #quick: QuickIo;

  constructor(
    fd: number,
    s: { readonly size: number; readonly blocks: number },
    fileSystem: number,
  ) {
    this.#fd = fd;
    this.lengthBytes = s.size;
    this.#allocatedBytes = s.blocks * BLOCK_BYTES;
    this.#quick = new QuickIo(fd, fileSystem);
  }

  mapping(_offset: GuestOffset, lengthBytes: number): Mapping {
    return { kind: 'opaque', lengthBytes };
  }

  async read(offset: GuestOffset, buffer: Uint8Array): Promise<void> {
    if (this.#quick.read(buffer, offset)) return;
    let done = 0;
    while (done < buffer.length) {
      const left = buffer.length - done;
      const { bytesRead } = await readAsync(this.#fd, buffer, done, left, offset + done);
      if (bytesRead === 0) break;
      done += bytesRead;
    }
    buffer.fill(0, done);
  }

  async flush(): Promise<void> {
    // Nothing is written.
  }

  async allocatedBytes(): Promise<number> {
    return this.#allocatedBytes;
  }

  async close(): Promise<void> {
    closeSync(this.#fd);
  }
}
