/**
 * The contract of the restart journal: what makes an answered change of mapping survive SIGKILL of every
 * process of ours before a checkpoint brings it to the image (see ARCHITECTURE.md, Durability).
 *
 * A driver appends one record per change before it answers; records are opaque here. A checkpoint calls
 * `begin` before it collects dirty metadata and `end` after its last sync, which forgets the records older
 * than `begin`. A checkpoint that fails does not call `end`: all records stay.
 *
 * The implementation (restart-journal-file.ts) is one file on tmpfs per image, named by device and inode,
 * carrying the boot id: records of another boot are never offered.
 *
 * Between the two another program may have written the image, unless it stayed locked (`isContinued`). A driver whose format has a place
 * that every other program clears which opens the image for writing puts the journal's `mark` there before its first record.
 */

export interface RestartJournal {
  /** What a process that died left for this image, oldest first; empty after a clean close, and when `end` has forgotten it. */
  readonly leftover: readonly Uint8Array[];
  /** The image stayed locked since those were left: no other program can have written it. */
  readonly isContinued: boolean;
  /** A random number below 2^31 that names this journal, the same as long as something of it is left. */
  readonly mark: number;
  /** Synchronous; the record survives SIGKILL when it returns. Errors: ENOSPC, EIO: it is never offered, and hides no other. */
  append(record: Uint8Array): void;
  /** Starts a new generation. One checkpoint at a time. */
  begin(): void;
  /** Forgets what was there at the last `begin`, leftovers too, and nothing that was appended since. */
  end(): void;
  /** Bytes of records that no checkpoint has covered. */
  readonly pendingBytes: number;
  /** After the last checkpoint: removes the file when nothing is pending. */
  close(): void;
}
