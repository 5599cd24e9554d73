/**
 * A job's dirty bitmap in a file on tmpfs, so that the job goes on where it was when its engine dies. It has every bit that is
 * set in memory, and those of copies in flight: a bit is set before the write that it stands for begins, and cleared when a
 * copy is in the target. It is good for one mount: whatever happened to source and target in between is not in it.
 *
 *     header  4096 bytes: a line of JSON (`Header`), zeros
 *     bits    granule `i` is bit `i % 8` of byte `i / 8`
 *
 * Synchronous, because the guest's write waits for it: 2 µs for a write to tmpfs. A file that cannot be written is removed, and the
 * job would begin again.
 */
import {
  closeSync,
  openSync,
  readFileSync,
  readSync,
  renameSync,
  rmSync,
  writeSync,
} from 'node:fs';
import { DirtyBitmap } from '../block/dirty-bitmap.ts';
import type { BitmapPersistence } from '../block/dirty-tracking.ts';

const VERSION = 1;
const HEADER_BYTES = 4096;

/** What the bits are true of. */
export interface BitmapFileScope {
  /** The mount, and what it runs on: of a mount that comes later it is another. */
  readonly instance: string;
  /** Paths. */
  readonly source: string;
  readonly target: string;
}

interface Header extends BitmapFileScope {
  readonly version: number;
  readonly granularityBytes: number;
  readonly lengthBytes: number;
}

export class BitmapFile implements BitmapPersistence {
  readonly #path: string;
  readonly #granularityBytes: number;
  readonly #granules: number;
  /** What the file has. */
  readonly #bits: Uint8Array;
  #fd: number | null;

  private constructor(path: string, content: DirtyBitmap, bits: Uint8Array, fd: number) {
    this.#path = path;
    this.#granularityBytes = content.granularityBytes;
    this.#granules = content.granules;
    this.#bits = bits;
    this.#fd = fd;
  }

  /** In the same turn in which the bitmap gets it as its persistence. Null where it cannot be made. */
  static create(path: string, scope: BitmapFileScope, content: DirtyBitmap): BitmapFile | null {
    const bits = bitsOf(content);
    const { granularityBytes, lengthBytes } = content;
    const header: Header = { version: VERSION, ...scope, granularityBytes, lengthBytes };
    const head = Buffer.alloc(HEADER_BYTES);
    if (head.write(`${JSON.stringify(header)}\n`) >= HEADER_BYTES) return null;
    try {
      const fd = openSync(`${path}.new`, 'w', 0o600);
      try {
        writeWhole(fd, head, 0);
        writeWhole(fd, bits, HEADER_BYTES);
        renameSync(`${path}.new`, path);
      } catch (error) {
        closeSync(fd);
        throw error;
      }
      return new BitmapFile(path, content, bits, fd);
    } catch {
      rmSync(`${path}.new`, { force: true });
      return null;
    }
  }

  /** What an engine has left; null when there is nothing, or it is of another mount, other files, or another length. */
  static load(
    path: string,
    scope: BitmapFileScope & { readonly lengthBytes: number },
  ): { readonly file: BitmapFile; readonly content: DirtyBitmap } | null {
    try {
      const bytes = readFileSync(path);
      const header = headerIn(bytes);
      const { granularityBytes, lengthBytes } = header;
      const isRight =
        header.version === VERSION &&
        header.instance === scope.instance &&
        header.source === scope.source &&
        header.target === scope.target &&
        lengthBytes === scope.lengthBytes;
      if (!isRight) return null;
      const content = new DirtyBitmap({ lengthBytes, granularityBytes });
      const bits = Uint8Array.from(bytes.subarray(HEADER_BYTES));
      if (bits.length !== bytesFor(content)) return null;
      content.addBits(0, bits);
      return { file: new BitmapFile(path, content, bits, openSync(path, 'r+')), content };
    } catch {
      return null;
    }
  }

  /** What the bits of a file are true of; null when it cannot be read. */
  static scopeOf(path: string): BitmapFileScope | null {
    try {
      const head = Buffer.alloc(HEADER_BYTES);
      const fd = openSync(path, 'r');
      try {
        readSync(fd, head);
      } finally {
        closeSync(fd);
      }
      const { version, instance, source, target } = headerIn(head);
      return version === VERSION ? { instance, source, target } : null;
    } catch {
      return null;
    }
  }

  mark(start: number, lengthBytes: number): void {
    if (this.#fd === null || lengthBytes === 0) return;
    const first = Math.floor(start / this.#granularityBytes);
    const last = Math.floor((start + lengthBytes - 1) / this.#granularityBytes);
    this.#change(first, Math.min(last, this.#granules - 1), true);
  }

  /** A copy of a range is in the target: what is clean in memory is so here. Whole granules, or up to the end. */
  clear(start: number, lengthBytes: number, content: DirtyBitmap): void {
    if (this.#fd === null) return;
    const end = start + lengthBytes;
    for (let at = start; at < end; ) {
      const clean = content.nextClean(at, end);
      if (clean === null) return;
      at = clean.start + clean.lengthBytes;
      const first = Math.floor(clean.start / this.#granularityBytes);
      this.#change(first, Math.ceil(at / this.#granularityBytes) - 1, false);
    }
  }

  discard(): void {
    this.close();
    rmSync(this.#path, { force: true });
  }

  /** What it has is there for the next engine. */
  close(): void {
    if (this.#fd !== null) closeSync(this.#fd);
    this.#fd = null;
  }

  #change(first: number, last: number, isDirty: boolean): void {
    const bits = this.#bits;
    let from = Number.POSITIVE_INFINITY;
    let to = -1;
    for (let granule = first; granule <= last; granule++) {
      const at = granule >>> 3;
      const bit = 1 << (granule & 7);
      const byte = bits[at] ?? 0;
      const now = isDirty ? byte | bit : byte & ~bit;
      if (now === byte) continue;
      bits[at] = now;
      from = Math.min(from, at);
      to = at;
    }
    if (to < 0 || this.#fd === null) return;
    try {
      writeWhole(this.#fd, bits.subarray(from, to + 1), HEADER_BYTES + from);
    } catch {
      this.discard();
    }
  }
}

const headerIn = (bytes: Buffer): Header =>
  JSON.parse(bytes.toString('utf8', 0, bytes.indexOf(10))) as Header;

const bytesFor = ({ granules }: DirtyBitmap): number => Math.ceil(granules / 8);

const bitsOf = (content: DirtyBitmap): Uint8Array => {
  const bits = new Uint8Array(bytesFor(content));
  const { granularityBytes } = content;
  for (const { start, lengthBytes } of content.dirtyRanges()) {
    const first = start / granularityBytes;
    const end = Math.ceil((start + lengthBytes) / granularityBytes);
    for (let granule = first; granule < end; granule++) {
      bits[granule >>> 3] = (bits[granule >>> 3] ?? 0) | (1 << (granule & 7));
    }
  }
  return bits;
};

const writeWhole = (fd: number, bytes: Uint8Array, offset: number): void => {
  for (let done = 0; done < bytes.length; ) {
    done += writeSync(fd, bytes, done, bytes.length - done, offset + done);
  }
};
