/**
 * A `file` protocol in memory whose operations are done in an order that a seed decides: all that are under way wait, and
 * one of them at a time is picked; some are held for long. Long reads and writes are done in pieces, others between them. With the same seed and the
 * same requests everything happens in the same order again.
 */
import { readFile, writeFile } from 'node:fs/promises';
import { file as hostFile } from '../../drivers/file/index.ts';
import { present } from '../../src/base/assert.ts';
import type { Random } from '../../src/base/random.ts';
import type { DriverDescriptor, DriverInstance } from '../../src/block/driver.ts';

/** Writes are torn at multiples of this, as a kernel tears them at pages. */
const PIECE_BYTES = 4096;

/** One of so many operations is held, for up to so many others. */
const HELD = { oneOf: 12, upTo: 500 } as const;

interface Waiting {
  /** Not before so many were picked, unless nothing else waits. */
  readonly due: number;
  readonly resume: () => void;
}

interface MemoryFile {
  bytes: Uint8Array;
  lengthBytes: number;
}

export interface ShuffledFilesOptions {
  /** Some of what is asked for at once is done at once, as the seed has it; without, nothing is. */
  readonly atOnce?: boolean;
  /** What it throws is the failure of an operation, of which nothing was done. Zeroing is writing. */
  readonly fault?: (operation: 'read' | 'write', path: string) => void;
}

export class ShuffledFiles {
  readonly descriptor: DriverDescriptor;
  readonly #random: Random;
  readonly #files = new Map<string, MemoryFile>();
  #waiting: Waiting[] = [];
  #picked = 0;
  #isPicking = false;
  readonly #options: ShuffledFilesOptions;

  constructor(random: Random, options: ShuffledFilesOptions = {}) {
    this.#random = random;
    this.#options = options;
    this.descriptor = {
      ...hostFile,
      openPath: async ({ path }) => {
        const file = this.#files.get(path) ?? (await this.#load(path));
        return this.#instance(file, path);
      },
    };
  }

  /** A copy of a file that was opened, as it is at this moment: of what is under way, a part may be done. */
  contentOf(path: string): Uint8Array {
    const { bytes, lengthBytes } = present(this.#files.get(path), 'a file that was opened');
    return bytes.slice(0, lengthBytes);
  }

  /** Brings a file to the host's disk, for other programs. */
  async save(path: string): Promise<void> {
    const { bytes, lengthBytes } = present(this.#files.get(path), 'a file that was opened');
    await writeFile(path, bytes.subarray(0, lengthBytes));
  }

  async #load(path: string): Promise<MemoryFile> {
    const bytes = new Uint8Array(await readFile(path));
    const file = { bytes, lengthBytes: bytes.length };
    this.#files.set(path, file);
    return file;
  }

  /** Resolves when it is picked. */
  #turn(): Promise<void> {
    const isHeld = this.#random.below(HELD.oneOf) === 0;
    const due = isHeld ? this.#picked + this.#random.below(HELD.upTo) : 0;
    const turn = new Promise<void>((resume) => this.#waiting.push({ due, resume }));
    if (!this.#isPicking) setImmediate(() => this.#pick());
    this.#isPicking = true;
    return turn;
  }

  // One in each turn of the event loop: what it sets going is under way before the next is picked.
  #pick(): void {
    this.#picked++;
    const due = this.#waiting.filter((w) => w.due <= this.#picked);
    const next = this.#random.pick(due.length > 0 ? due : this.#waiting);
    this.#waiting = this.#waiting.filter((w) => w !== next);
    next.resume();
    this.#isPicking = this.#waiting.length > 0;
    if (this.#isPicking) setImmediate(() => this.#pick());
  }

  async #inPieces(
    start: number,
    lengthBytes: number,
    run: (from: number, to: number) => void,
    fail?: () => void,
  ): Promise<void> {
    const end = start + lengthBytes;
    for (let at = start; at < end; ) {
      await this.#turn();
      if (at === start) fail?.();
      const pieces = 1 + this.#random.below(8);
      const next = Math.min(end, at - (at % PIECE_BYTES) + pieces * PIECE_BYTES);
      run(at, next);
      at = next;
    }
  }

  #atOnce(file: MemoryFile): Partial<DriverInstance> {
    if (this.#options.atOnce !== true) return {};
    const isDone = (): boolean => this.#random.below(3) > 0;
    return {
      worksAtOnce: true,
      readAtOnce: (offset, buffer) => {
        if (!isDone()) return false;
        const found = file.bytes.subarray(0, file.lengthBytes).subarray(offset);
        buffer.fill(0);
        buffer.set(found.subarray(0, buffer.length));
        return true;
      },
      writeAtOnce: (offset, buffer) => {
        if (!isDone()) return false;
        grow(file, offset + buffer.length);
        file.bytes.set(buffer, offset);
        return true;
      },
    };
  }

  #instance(file: MemoryFile, path: string): DriverInstance {
    const { fault } = this.#options;
    const fail = (operation: 'read' | 'write') => () => fault?.(operation, path);
    const zero = (start: number, lengthBytes: number): Promise<void> =>
      this.#inPieces(start, lengthBytes, (from, to) => file.bytes.fill(0, from, to), fail('write'));
    return {
      ...this.#atOnce(file),
      clusterBytes: 1,
      backingLink: null,
      growsOnWrite: true,
      get lengthBytes() {
        return file.lengthBytes;
      },
      mapping: (_offset, lengthBytes) => ({ kind: 'opaque', lengthBytes }),
      stores: async (_offset, lengthBytes) => ({ stored: true, lengthBytes }),
      read: async (offset, buffer) => {
        await this.#inPieces(
          offset,
          buffer.length,
          (from, to) => {
            buffer.fill(0, from - offset, to - offset);
            const end = Math.min(to, file.lengthBytes);
            if (end > from) buffer.set(file.bytes.subarray(from, end), from - offset);
          },
          fail('read'),
        );
      },
      write: async (offset, buffer) => {
        await this.#inPieces(
          offset,
          buffer.length,
          (from, to) => {
            grow(file, to);
            file.bytes.set(buffer.subarray(from - offset, to - offset), from);
          },
          fail('write'),
        );
      },
      writeZeroes: async (offset, lengthBytes) => {
        grow(file, offset + lengthBytes);
        await zero(offset, lengthBytes);
      },
      discard: (offset, lengthBytes) =>
        zero(offset, Math.max(0, Math.min(lengthBytes, file.lengthBytes - offset))),
      allocate: async (offset, lengthBytes) => grow(file, offset + lengthBytes),
      resize: async (lengthBytes) => {
        if (lengthBytes < file.lengthBytes) file.bytes.fill(0, lengthBytes);
        grow(file, lengthBytes);
        file.lengthBytes = lengthBytes;
      },
      flush: () => this.#turn(),
      allocatedBytes: async () => file.lengthBytes,
      close: async () => undefined,
    };
  }
}

/** What is between the old end and the new is zeros. */
const grow = (file: MemoryFile, lengthBytes: number): void => {
  if (lengthBytes > file.bytes.length) {
    const larger = new Uint8Array(Math.max(lengthBytes, 2 * file.bytes.length));
    larger.set(file.bytes.subarray(0, file.lengthBytes));
    file.bytes = larger;
  }
  file.lengthBytes = Math.max(file.lengthBytes, lengthBytes);
};
