/** A `file` protocol under which a change of an image's header fails, and what it wrote cannot be put back until the fault ends. */
import { BlockError } from '../../src/base/block-error.ts';
import type { DriverDescriptor } from '../../src/block/driver.ts';
import { delayedFile } from './delayed-file.ts';

const MESSAGE = 'the fault of this test';

export interface HeaderFaultOptions {
  readonly path: string;
  readonly headerBytes: number;
  /**
   * What fails first. 'sync': the sync of the write, which succeeds, and so does every later write; what the host could not sync it
   * remembers, so that no sync of this opening succeeds, not after `end` either. 'reached': the write, which has reached the file all
   * the same. 'write': the write, of which nothing has.
   */
  readonly first: 'sync' | 'reached' | 'write';
}

export class HeaderFault {
  readonly file: DriverDescriptor;
  /** The offset in the file of the write that is the change; null while nothing is to fail. */
  #at: number | null = null;
  #isMet = false;
  #readsFail = false;
  /** Syncs until one fails; null for none. */
  #syncsLeft: number | null = null;

  constructor({ path, headerBytes, first }: HeaderFaultOptions) {
    this.file = delayedFile(path, {
      syncsAreRemembered: first === 'sync',
      before: async (operation, offset) => {
        if (operation === 'write' && offset === this.#at && !this.#isMet) {
          if (first === 'sync') this.failSync(1);
          if (first !== 'reached') this.#isMet = true;
          if (first === 'write') throw fault();
        } else if (this.#isMet && first !== 'sync' && operation === 'write' && offset < headerBytes)
          throw fault();
        else if (this.#readsFail && operation === 'read' && offset < headerBytes) throw fault();
        else if (operation === 'flush' && this.#isFailingSync()) throw fault();
      },
      written: async (offset) => {
        if (first !== 'reached' || offset !== this.#at || this.#isMet) return;
        this.#isMet = true;
        throw fault();
      },
    });
  }

  /** The change has been met. */
  get isMet(): boolean {
    return this.#isMet;
  }

  /** The write at this offset is the change. From then on no write of the header succeeds, or where a sync fails first no sync. */
  arm(at: number): void {
    this.#at = at;
  }

  /** From now on nobody can read the header. */
  failReads(): void {
    this.#readsFail = true;
  }

  /** One sync fails: the how-manieth from now, from 1. */
  failSync(which: number): void {
    this.#syncsLeft = which;
  }

  end(): void {
    this.#readsFail = false;
    this.#at = null;
    this.#isMet = false;
  }

  #isFailingSync(): boolean {
    if (this.#syncsLeft === null) return false;
    this.#syncsLeft--;
    if (this.#syncsLeft > 0) return false;
    this.#syncsLeft = null;
    return true;
  }
}

export const FAULT = new RegExp(MESSAGE);

const fault = (): BlockError => new BlockError({ kind: 'no-space', message: MESSAGE });
