/**
 * The length of a host file as its driver knows it, and the order of everything that changes it: what may make the file longer keeps
 * off the moment in which space that was taken ahead is given back (space-ahead.ts).
 */
import { fstatSync } from 'node:fs';
import type { FileHandle } from 'node:fs/promises';
import { toBlockError } from '../../src/base/block-error.ts';
import { giveBackSpaceOf, SpaceAhead } from './space-ahead.ts';

export interface FileLengthOptions {
  readonly handle: FileHandle;
  readonly lengthBytes: number;
  /** Of the file system, as stat(2) has it. */
  readonly device: number;
  /** Others may make it longer: workers, and who has the file besides. */
  readonly growsUnseen: boolean;
  readonly takesSpaceAhead: boolean;
  /** See `SpaceAheadOptions`. */
  readonly isInMemory: boolean;
}

export class FileLength {
  readonly #handle: FileHandle;
  readonly #device: number;
  readonly #growsUnseen: boolean;
  /** Null for a file that takes none. */
  readonly #ahead: SpaceAhead | null;
  #bytes: number;

  constructor(options: FileLengthOptions) {
    const { handle, lengthBytes, device, growsUnseen, takesSpaceAhead, isInMemory } = options;
    this.#handle = handle;
    this.#bytes = lengthBytes;
    this.#device = device;
    this.#growsUnseen = growsUnseen;
    this.#ahead = takesSpaceAhead
      ? new SpaceAhead({ handle, device, isInMemory, lengthBytes: () => this.#bytes })
      : null;
  }

  /** Never more than it is. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Whether space that was taken past the end is given back, at close at the latest. */
  get givesBackSpace(): boolean {
    return this.#ahead !== null;
  }

  /** See `DriverInstance.lend`. */
  lend(end: number): boolean {
    return this.#ahead?.lend(end) !== false;
  }

  /** See `DriverInstance.reloadLength`. Errors: those of fstat(2). */
  async reload(): Promise<void> {
    const s = await this.#handle.stat();
    if (s.isFile()) this.#bytes = s.size;
  }

  /** See `DriverInstance.noticeGrowth`. */
  noticeGrowth(): void {
    if (!this.#growsUnseen) return;
    this.#bytes = Math.max(this.#bytes, fstatSync(this.#handle.fd).size);
  }

  /** Something has made the file so long at least. */
  reached(end: number): void {
    this.#bytes = Math.max(this.#bytes, end);
  }

  /** A write has ended. */
  written(offset: number, end: number): void {
    this.reached(end);
    this.#ahead?.written(offset, end);
  }

  /** Whether a request may write up to `end` in this turn of the event loop. */
  mayReachAtOnce(end: number): boolean {
    return end <= this.#bytes || this.#ahead?.mayGrow !== false;
  }

  /** Runs what writes up to `end`, and may make the file longer by that. */
  reaching<T>(end: number, run: () => Promise<T>): Promise<T> {
    return this.#ahead === null || end <= this.#bytes ? run() : this.#ahead.grow(run);
  }

  /** As `reaching`, and once more where the file system was full and had space that was taken ahead. */
  async reachingWithSpace<T>(end: number, run: () => Promise<T>): Promise<T> {
    try {
      return await this.reaching(end, run);
    } catch (error) {
      if (toBlockError(error).kind !== 'no-space') throw error;
      if (!(await giveBackSpaceOf(this.#device))) throw error;
      return this.reaching(end, run);
    }
  }

  /** See `DriverInstance.resize`. Errors: those of ftruncate(2). */
  async resize(lengthBytes: number): Promise<void> {
    const cut = (): Promise<void> => this.#handle.truncate(lengthBytes);
    // A shorter one too: giving back would make it as long as it was.
    await (this.#ahead === null ? cut() : this.#ahead.grow(cut));
    this.#bytes = lengthBytes;
    this.#ahead?.resized();
  }

  /** See `DriverInstance.settle`. */
  async settle(): Promise<void> {
    await this.#ahead?.close();
  }
}
