/**
 * What a driver tells the restart journal, and what becomes of it when that cannot be written (the runtime directory is full): a
 * change that it has not taken waits here, in order, until it takes it after all or a checkpoint has brought it to the disk. As long
 * as there is one the image is *behind* (see `isBehind`).
 *
 * While a checkpoint brings such a change to the disk nothing is told: what comes after the change could not be taken up without it,
 * and the change itself, told then, would be done a second time when what it freed is another's.
 *
 * Nor may such a change be on the disk while the journal has one from before it. Who takes up the journal goes by the values on
 * disk, and would undo it or find a value that is none of the journal's. So a checkpoint brings first what is told, and all of it
 * only when the journal has forgotten that (`beginTold`).
 *
 * Concurrency: every call is one turn of the event loop. One checkpoint at a time.
 */
import { toBlockError } from '../base/block-error.ts';
import type { Log } from '../base/log.ts';
import type { RestartJournal } from './restart-journal.ts';

export interface JournaledChangesOptions<T> {
  /** Null for offline tools: then everything counts as told. */
  readonly journal: RestartJournal | null;
  /** At most. What waits is told by records then, and the journal may take a part of it; else all of it, or nothing. */
  readonly changesPerRecord?: number;
  /** One record. */
  readonly encode: (changes: readonly T[]) => Uint8Array;
  readonly log: Log;
  /** Of the image. */
  readonly path: string;
}

export class JournaledChanges<T> {
  readonly #options: JournaledChangesOptions<T>;
  /** Not taken, and not in what the running checkpoint covers; oldest first. */
  #untold: T[] = [];
  /** Not taken, and covered by the running checkpoint. */
  #covered: T[] = [];
  /** A checkpoint runs that leaves out what is not told. */
  #isLeftOut = false;
  #hasFailed = false;

  constructor(options: JournaledChangesOptions<T>) {
    this.#options = options;
  }

  get #perRecord(): number {
    return this.#options.changesPerRecord ?? Number.POSITIVE_INFINITY;
  }

  /**
   * Something that is changed in memory would not survive SIGKILL. Nothing that depends on it may be answered before a checkpoint that
   * begins now has ended, and nobody who does not ask here may be given what was changed, to write it.
   */
  get isBehind(): boolean {
    return this.#untold.length > 0 || this.#covered.length > 0;
  }

  /** Changes that are made in this turn whatever comes of it. False: not all of them are told, and the image is behind. */
  tell(changes: readonly T[]): boolean {
    if (this.offer(changes)) return true;
    for (const change of changes) this.#untold.push(change);
    // More than one record takes.
    return changes.length > this.#perRecord && this.catchUp();
  }

  /** Changes that are made in this turn if the journal takes them. False: it has taken nothing of them. */
  offer(changes: readonly T[]): boolean {
    if (this.#options.journal === null) return true;
    if (changes.length > this.#perRecord || !this.catchUp()) return false;
    return changes.length === 0 || this.#append(changes);
  }

  /** Tells what was not told. False: the image is still behind. */
  catchUp(): boolean {
    if (this.#covered.length > 0 || this.#isLeftOut) return false;
    while (this.#untold.length > 0) {
      const part = this.#untold.slice(0, this.#perRecord);
      if (!this.#append(part)) return false;
      this.#untold = this.#untold.slice(part.length);
    }
    return true;
  }

  /**
   * A checkpoint begins, and takes up in this turn what is changed and told: the changes that it leaves out, oldest first. When it has
   * ended, one of all that is changed begins in the same turn. Null, and none has begun: nothing has to be left out.
   */
  beginTold(): readonly T[] | null {
    const { journal } = this.#options;
    if (journal === null || journal.pendingBytes === 0 || this.#untold.length === 0) return null;
    journal.begin();
    this.#isLeftOut = true;
    return this.#untold.slice();
  }

  /** A checkpoint begins, and takes up in this turn all that is changed. */
  begin(): void {
    this.#options.journal?.begin();
    this.#covered = this.#untold;
    this.#untold = [];
  }

  /** What was taken up is on disk. */
  end(): void {
    const isLeftOut = this.#isLeftOut;
    this.#isLeftOut = false;
    this.#covered = [];
    this.#options.journal?.end();
    // What was left out is not told now: the checkpoint that begins in this turn covers it.
    if (!isLeftOut) this.catchUp();
  }

  /** The checkpoint has failed: what was taken up may be on disk, or not. */
  fail(): void {
    this.#untold = [...this.#covered, ...this.#untold];
    this.#covered = [];
    this.#isLeftOut = false;
  }

  #append(changes: readonly T[]): boolean {
    const { journal, encode, log, path } = this.#options;
    try {
      journal?.append(encode(changes));
    } catch (error) {
      const reason = toBlockError(error).describe();
      const text = `the restart journal cannot be written (${reason}): checkpoints take its place`;
      if (!this.#hasFailed) log.warning(path, text);
      this.#hasFailed = true;
      return false;
    }
    if (this.#hasFailed) log.info(path, 'the restart journal is written again');
    this.#hasFailed = false;
    return true;
  }
}
