/**
 * Files that one user of a graph has to itself: an image's data files while it is open for writing, what a job copies to, and
 * the layers that a commit changes. Another image that named the same file would read half of what is written, or write
 * over it.
 */
import { BlockError } from '../base/block-error.ts';

export type ExclusiveUse = 'data file' | 'target' | 'layer';

const IS_OPEN: Readonly<Record<ExclusiveUse, string>> = {
  'data file': 'is open already, and would be written as the data file of another',
  target: 'is open already: nothing can be copied to it',
  layer: 'is open for another image: it cannot be changed',
};

const IS_TAKEN: Readonly<Record<ExclusiveUse, string>> = {
  'data file': 'is the data file of another image, which is open for writing',
  target: 'is the target of a job, or was added as one',
  layer: 'is a layer of an image that a job commits',
};

export class ExclusiveFiles {
  /** By identity. */
  readonly #taken = new Map<string, ExclusiveUse>();

  /** `isOpen`: somebody has the file open already. Errors: EBUSY. */
  take(identity: string, path: string, use: ExclusiveUse, isOpen: boolean): void {
    this.refuse(identity, path);
    if (isOpen) throw busy(IS_OPEN[use], path);
    this.#taken.set(identity, use);
  }

  /** Errors: EBUSY for a file that is taken. */
  refuse(identity: string, path: string): void {
    const use = this.#taken.get(identity);
    if (use !== undefined) throw busy(IS_TAKEN[use], path);
  }

  giveBack(identity: string): void {
    this.#taken.delete(identity);
  }
}

const busy = (message: string, path: string): BlockError =>
  new BlockError({ kind: 'busy', message, path, op: 'open' });
