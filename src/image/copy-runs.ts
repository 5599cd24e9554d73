/**
 * Copying in runs: several reads at the same time, in pieces, with a bound; the offline commands' way to move much
 * data. Reads overlap; writes come in order unless told otherwise, so that a new image is laid out in order.
 */

import { allOf } from '../base/parts.ts';
import { type GuestOffset, guestOffset } from '../base/units.ts';

/** A piece of a copy: bytes to be read and written, or zeros. */
export interface CopyRun {
  readonly offset: number;
  readonly lengthBytes: number;
  readonly kind: 'data' | 'zero';
}

export interface CopyOptions {
  readonly runs: AsyncIterator<CopyRun>;
  /** Pieces in flight. */
  readonly parallel: number;
  readonly inOrder: boolean;
  readonly read: (offset: GuestOffset, buffer: Uint8Array) => Promise<void>;
  readonly write: (offset: GuestOffset, bytes: Uint8Array) => Promise<void>;
  readonly zero: (offset: GuestOffset, lengthBytes: number) => Promise<void>;
  /** Called after each piece. Throwing ends the copy. */
  readonly done: (lengthBytes: number) => void;
}

/** Copies until the runs end. Errors: the first one met; nothing is in flight any more then. */
export const copyRuns = async (options: CopyOptions): Promise<void> => {
  const { runs, inOrder, read, write, zero, done } = options;
  let failed = false;
  let taking: Promise<IteratorResult<CopyRun>> | null = null;
  let before: Promise<void> = Promise.resolve();
  const take = async (): Promise<IteratorResult<CopyRun>> => {
    while (taking !== null) await taking;
    taking = runs.next();
    try {
      return await taking;
    } finally {
      taking = null;
    }
  };
  const copyOne = async (run: CopyRun, turn: Promise<void>): Promise<void> => {
    const at = guestOffset(run.offset);
    if (run.kind === 'zero') {
      if (inOrder) await turn;
      await zero(at, run.lengthBytes);
    } else {
      const buffer = Buffer.allocUnsafe(run.lengthBytes);
      await read(at, buffer);
      if (inOrder) await turn;
      await write(at, buffer);
    }
    done(run.lengthBytes);
  };
  const worker = async (): Promise<void> => {
    while (!failed) {
      const next = await take();
      if (next.done === true || failed) return;
      const turn = before;
      const copying = copyOne(next.value, turn);
      // The next one's turn comes also after a failure: it sees `failed`.
      before = copying.catch(() => undefined);
      try {
        await copying;
      } catch (error) {
        failed = true;
        throw error;
      }
    }
  };
  await allOf(Array.from({ length: options.parallel }, worker));
};
