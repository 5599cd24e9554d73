/**
 * Changes of an image's header that are there or are not, for memory and file alike: a change that fails is put back, since what is in
 * memory goes on by the old fields, and so has whoever opens the image next.
 *
 * Where the old bytes cannot be written and synced either they are *owed*: the file may have the new ones. Until they are there
 *
 * - no checkpoint gets beyond putting them back, which it begins with: what is written by the old fields (tables that the new ones
 *   do not name) is not on disk before, and no flush is answered as if it were;
 * - no other change of the header begins;
 * - the restart journal has them, unless the new ones are as good for who takes over: an engine that does puts them back before it
 *   reads the header. They are owed until a checkpoint that has put them back has ended, which is when the journal forgets them: it
 *   never holds bytes that a later change has taken the place of.
 *
 * Only the bytes that the change made others are put back: bits beside them (corrupt, autoclear) are their owners', who write them here
 * too (`set`, `edit`, `note`). One write of the header at a time, with what was read for it: none undoes another.
 */
import { BlockError, toBlockError } from '../base/block-error.ts';
import { viewOf } from '../base/byte-order.ts';
import type { Log } from '../base/log.ts';
import { guestOffset } from '../base/units.ts';
import type { Node } from './node.ts';

/** A change that has failed. Both are equally long. */
export interface OwedHeader {
  /** File offset. */
  readonly at: number;
  /** What has to be there. */
  readonly before: Uint8Array;
  /** What may be there. */
  readonly after: Uint8Array;
  /** The driver's own: how whoever takes over knows that nobody has used what the new bytes name. Empty for none. */
  readonly witness: Uint8Array;
}

type Difference = Omit<OwedHeader, 'witness'>;

export interface HeaderChangesOptions {
  readonly file: Node;
  /** Of the image. */
  readonly path: string;
  readonly log: Log;
  /** Sees to a checkpoint. */
  readonly owes: () => void;
  /** Tells the restart journal, in this turn of the event loop. Not of what is harmless. */
  readonly tell: (owed: OwedHeader) => void;
  /** A checkpoint that begins after the call. Errors: its own. */
  readonly checkpoint: () => Promise<void>;
}

export interface HeaderWriteOptions {
  /** Whoever opens the image next may go on by the new bytes: all that is written by the old ones meanwhile is right by them too. */
  readonly isHarmless?: boolean;
  /** What the new bytes were made from, as long as they are: where they are the same, those are kept that are there now. */
  readonly from?: Uint8Array;
  /** See `OwedHeader.witness`. Called when the new bytes are owed. */
  readonly witness?: () => Uint8Array;
}

const WRITE_FAILED = 'mend what is below the image: each flush tries it again';
/** A local file remembers a sync that has failed: no later one of the same opening is believed (drivers/file/host-syncs.ts). */
const SYNC_FAILED = 'mend what is below the image, and then: vdiskfs restart MOUNTPOINT';

interface SyncedWriteOptions extends HeaderWriteOptions {
  readonly sync: () => Promise<void>;
}

export class HeaderChanges {
  readonly #options: HeaderChangesOptions;
  #owed: OwedHeader | null = null;
  /** The write of the header that is under way or was the last; never rejects. */
  #last: Promise<unknown> = Promise.resolve();

  constructor(options: HeaderChangesOptions) {
    this.#options = options;
  }

  get file(): Node {
    return this.#options.file;
  }

  /** A checkpoint takes it when it begins, puts it back first, and says so with `forget` when it has ended; null for nothing. */
  get owed(): OwedHeader | null {
    return this.#owed;
  }

  /** Nothing is owed when it returns. Not inside a checkpoint. Errors: those of the checkpoint. */
  async settled(): Promise<void> {
    if (this.#owed !== null) await this.#options.checkpoint();
  }

  /**
   * Writes bytes of the header, durably. One change at a time; inside a checkpoint only while nothing is owed. Errors: ENOSPC, EIO; the
   * old bytes are there then, or owed.
   */
  async change(at: number, now: Uint8Array, options: HeaderWriteOptions = {}): Promise<void> {
    await this.#change(at, now, { ...options, sync: () => this.file.flush() });
  }

  /** The same for who goes on by the new bytes once they are written, whether or not his sync of them succeeds. */
  async write(at: number, now: Uint8Array, options: HeaderWriteOptions = {}): Promise<void> {
    await this.#change(at, now, { ...options, sync: async () => undefined });
  }

  /** Writes bytes that are not put back when it fails, durably: by themselves they say nothing untrue. Errors: ENOSPC, EIO. */
  async set(at: number, bytes: Uint8Array): Promise<void> {
    await this.#alone(() => this.#write(at, bytes));
  }

  /** The same of bytes that others write parts of. `fill` changes what is there, at once. */
  async edit(at: number, lengthBytes: number, fill: (view: DataView) => void): Promise<void> {
    await this.#alone(async () => {
      const bytes = new Uint8Array(lengthBytes);
      await this.file.readClipped(guestOffset(at), bytes);
      fill(viewOf(bytes));
      await this.#write(at, bytes);
    });
  }

  /** As `set`, without a sync: of bytes that say nothing untrue either when a power cut takes them away. */
  async note(at: number, bytes: Uint8Array): Promise<void> {
    await this.#alone(() => this.file.write(guestOffset(at), bytes));
  }

  async #write(at: number, bytes: Uint8Array): Promise<void> {
    await this.file.write(guestOffset(at), bytes);
    await this.file.flush();
  }

  /** Not inside of another one, and no checkpoint is waited for inside. */
  #alone<T>(run: () => Promise<T>): Promise<T> {
    const turn = this.#last.then(run);
    this.#last = turn.catch(() => undefined);
    return turn;
  }

  async #change(at: number, now: Uint8Array, options: SyncedWriteOptions): Promise<void> {
    for (let isMade = false; !isMade; ) {
      await this.settled();
      isMade = await this.#alone(async () => {
        // Of the one before, which was not owed when it was asked.
        if (this.#owed !== null) return false;
        await this.#changeAlone(at, now, options);
        return true;
      });
    }
  }

  async #changeAlone(
    at: number,
    now: Uint8Array,
    { sync, from, ...options }: SyncedWriteOptions,
  ): Promise<void> {
    const { file } = this;
    const before = new Uint8Array(now.length);
    await file.readClipped(guestOffset(at), before);
    const after = now.map((byte, i) => (byte === from?.[i] ? (before[i] ?? 0) : byte));
    try {
      await file.write(guestOffset(at), after);
      await sync();
    } catch (error) {
      await this.#takeBack(differenceOf({ at, before, after }), options);
      throw error;
    }
  }

  async #takeBack(difference: Difference, options: HeaderWriteOptions): Promise<void> {
    const { isHarmless = false, witness } = options;
    // Nothing was to be another.
    if (difference.before.length === 0) return;
    try {
      await this.#restore(difference);
    } catch (error) {
      const { log, path, owes, tell } = this.#options;
      log.error(path, `no flush succeeds now: ${toBlockError(error).describe()}`);
      const owed = { ...difference, witness: witness?.() ?? new Uint8Array(0) };
      this.#owed = owed;
      if (!isHarmless) tell(owed);
      owes();
    }
  }

  /** The first step of a checkpoint. Errors: EIO, whatever it is that the file has said. */
  async putBack(owed: OwedHeader | null): Promise<void> {
    if (owed !== null) await this.#alone(() => this.#restore(owed));
  }

  /** The old bytes, durably. Errors: EIO, with what to do. */
  async #restore(difference: Difference): Promise<void> {
    let hint = WRITE_FAILED;
    try {
      await writeBack(this.file, difference);
      hint = SYNC_FAILED;
      await this.file.flush();
    } catch (cause) {
      const message = `${describeOwed(difference)}: ${toBlockError(cause).message}`;
      const { path } = this.#options;
      throw new BlockError({ kind: 'io', message, hint, path, offset: difference.at, cause });
    }
  }

  /** A checkpoint that has put it back has ended, and so has what the journal holds of it. */
  forget(owed: OwedHeader | null): void {
    if (owed === null || owed !== this.#owed) return;
    this.#owed = null;
    const { log, path } = this.#options;
    log.info(path, 'its header is what it was before the change that had failed');
  }

  /** The image is closed. What is owed nobody but the restart journal knows of then. */
  closed(): void {
    if (this.#owed === null) return;
    const { log, path } = this.#options;
    log.error(
      path,
      `is closed, and ${describeOwed(this.#owed)}: its header may be the changed one`,
    );
  }
}

/**
 * What an engine owed that was killed: puts it back, durably. False: another program has written there since, and nothing is done.
 * Errors: EIO, ENOSPC.
 */
export const takeUpOwed = async (file: Node, owed: OwedHeader): Promise<boolean> => {
  const { before, after } = owed;
  const found = await readRange(file, owed);
  if (found.some((byte, i) => byte !== before[i] && before[i] !== after[i] && byte !== after[i]))
    return false;
  await writeBack(file, owed);
  await file.flush();
  return true;
};

/** Whether the old bytes are there. Errors: EIO. */
export const isPutBack = async (file: Node, owed: OwedHeader): Promise<boolean> => {
  const { before, after } = owed;
  const found = await readRange(file, owed);
  return found.every((byte, i) => byte === before[i] || before[i] === after[i]);
};

// In one write: within a sector a cut leaves all of it or nothing. No sync.
const writeBack = async (file: Node, owed: Difference): Promise<void> => {
  const { at, before, after } = owed;
  const bytes = await readRange(file, owed);
  for (const [i, byte] of before.entries()) if (byte !== after[i]) bytes[i] = byte;
  await file.write(guestOffset(at), bytes);
};

const readRange = async (file: Node, { at, before }: Difference): Promise<Uint8Array> => {
  const bytes = new Uint8Array(before.length);
  await file.readClipped(guestOffset(at), bytes);
  return bytes;
};

/** From the first byte that the change made another to the last. */
const differenceOf = ({ at, before, after }: Difference): Difference => {
  let start = 0;
  let end = before.length;
  while (start < end && before[start] === after[start]) start++;
  while (end > start && before[end - 1] === after[end - 1]) end--;
  return { at: at + start, before: before.slice(start, end), after: after.slice(start, end) };
};

const describeOwed = ({ at, before }: Difference): string =>
  `bytes ${at} to ${at + before.length - 1} of the header, of a change that has failed, cannot be put back`;

const HEAD_BYTES = 16;

/** For a journal: file offset f64, bytes u32, bytes of the witness u32; the bytes before, those after, the witness. */
export const encodeOwed = ({ at, before, after, witness }: OwedHeader): Uint8Array => {
  const head = new Uint8Array(HEAD_BYTES);
  viewOf(head).setFloat64(0, at);
  viewOf(head).setUint32(8, before.length);
  viewOf(head).setUint32(12, witness.length);
  return Buffer.concat([head, before, after, witness]);
};

/** What `encodeOwed` has put at the beginning of these bytes, and how many it took; null where they are no such thing. */
export const decodeOwed = (
  bytes: Uint8Array,
): { readonly owed: OwedHeader; readonly lengthBytes: number } | null => {
  if (bytes.length < HEAD_BYTES) return null;
  const view = viewOf(bytes);
  const [at, half] = [view.getFloat64(0), view.getUint32(8)];
  const end = HEAD_BYTES + 2 * half;
  const lengthBytes = end + view.getUint32(12);
  if (!Number.isSafeInteger(at) || at < 0 || bytes.length < lengthBytes) return null;
  const before = bytes.slice(HEAD_BYTES, HEAD_BYTES + half);
  const after = bytes.slice(HEAD_BYTES + half, end);
  return { owed: { at, before, after, witness: bytes.slice(end, lengthBytes) }, lengthBytes };
};
