/**
 * A copy of a range into a file on tmpfs, by one of several threads. copy_file_range(2) holds the file's lock while it makes pages, so
 * two threads that use it take as long as one. Whoever finds the other at it reads into a mapping of the file instead: its pages are
 * made without that lock, though with twice the work.
 */
import { type BlockErrorWire, toBlockError } from '../../src/base/block-error.ts';
import {
  copyFileRangeAtOnce,
  type FilePlace,
  readIntoFileAtOnce,
} from '../../src/os/file-copies.ts';
import { endOf, fallocateAtOnce } from '../../src/os/file-ranges.ts';
import { CopyTurns } from './copy-turns.ts';

/** The files' descriptors stay open until the outcome is there. */
export interface CopyTask {
  readonly id: number;
  readonly from: FilePlace;
  readonly to: FilePlace;
  readonly lengthBytes: number;
  /** `CopyTurns.shared` of the file. */
  readonly turns: SharedArrayBuffer;
}

/** `failure`: what came after the bytes that are copied. */
export interface CopyOutcome {
  readonly id: number;
  readonly copiedBytes: number;
  readonly failure: BlockErrorWire | null;
}

/** What another thread may have to wait for. */
const PIECE_BYTES = 1 << 20;

/**
 * Blocks its thread, which is not the main one, for as long as the copy takes and some waits of a second at most. Fewer bytes than asked where
 * the source ends. Errors: with the outcome.
 */
export const runCopyTask = ({ id, from, to, lengthBytes, turns }: CopyTask): CopyOutcome => {
  const ofFile = new CopyTurns(turns);
  let copiedBytes = 0;
  try {
    while (copiedBytes < lengthBytes) {
      const copied = copyPiece(
        { fd: from.fd, offset: from.offset + copiedBytes },
        { fd: to.fd, offset: to.offset + copiedBytes },
        Math.min(PIECE_BYTES, lengthBytes - copiedBytes),
        ofFile,
      );
      if (copied === 0) break;
      copiedBytes += copied;
    }
    return { id, copiedBytes, failure: null };
  } catch (error) {
    return { id, copiedBytes, failure: toBlockError(error, { op: 'copy' }).toWire() };
  }
};

const copyPiece = (
  from: FilePlace,
  to: FilePlace,
  lengthBytes: number,
  turns: CopyTurns,
): number => {
  for (let mayMap = true; !turns.tryTake(); ) {
    // The other thread may have made the file longer since.
    if (mayMap && to.offset + lengthBytes <= endOf(to.fd)) {
      if (readIntoFileAtOnce(from, to, lengthBytes) === lengthBytes) return lengthBytes;
      // The other way does it again, and says what is wrong.
      mayMap = false;
    }
    if (!turns.awaitFree()) break;
  }
  try {
    reach(to.fd, turns.end);
    return copyFileRangeAtOnce(from, to, lengthBytes);
  } finally {
    turns.giveBack();
  }
};

/** So that the other thread need not wait until this one comes there. */
const reach = (fd: number, end: number): void => {
  if (end <= endOf(fd)) return;
  try {
    // A truncation could take what is written meanwhile.
    fallocateAtOnce(fd, 0, end - 1, 1);
  } catch {
    // Whose page that is meets the error again.
  }
};
