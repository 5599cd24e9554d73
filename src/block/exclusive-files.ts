/**
 * Files that one image of a graph has to itself: its data files while it is open for writing. Another image that named
 * the same file would read half of what is written, or write over it.
 */
import { BlockError } from '../base/block-error.ts';

export class ExclusiveFiles {
  /** By identity. */
  readonly #taken = new Set<string>();

  /** `isOpen`: somebody has the file open already. Errors: EBUSY. */
  take(identity: string, path: string, isOpen: boolean): void {
    this.refuse(identity, path);
    if (isOpen)
      throw busy('is open already, and would be written as the data file of another', path);
    this.#taken.add(identity);
  }

  /** Errors: EBUSY for a file that is taken. */
  refuse(identity: string, path: string): void {
    if (this.#taken.has(identity)) {
      throw busy('is the data file of another image, which is open for writing', path);
    }
  }

  giveBack(identity: string): void {
    this.#taken.delete(identity);
  }
}

const busy = (message: string, path: string): BlockError =>
  new BlockError({ kind: 'busy', message, path, op: 'open' });
