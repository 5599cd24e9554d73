/**
 * Which files views stand for after a pivot, in the state directory: one file for each, so that engines and mounts that come
 * later know it. It is named by the original's path and replaced in one rename.
 *
 * What a view shows must be known before it is shown, and a guest waits for a pivot: five seconds bound both (see `load` and
 * `put`). A change that may be made although it was given up, because the host has been asked for it and does not answer, is *owed*:
 * when that call returns, what it has made is taken back, by this engine or a later one.
 */
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import type { StandIn, StandIns } from '../../mount/catalog/stand-ins.ts';
import { BlockError, toBlockError } from '../base/block-error.ts';
import { endsWithin, GIVE_UP_MS } from '../base/bounded-wait.ts';
import { type ChangeOptions, removeFile, replaceFile } from '../base/durable-file.ts';
import type { Log } from '../base/log.ts';
import { type RecordKind, readRecords, recordNames, recordText } from '../base/record-files.ts';

const NO_ANSWER = `does not answer for ${GIVE_UP_MS / 1000} s`;

/** What later engines of a mount go by, whatever the directory says by then. */
export interface KeptStandIns {
  readonly records: readonly StandIn[];
  /** Originals of which the directory may say something else. */
  readonly owed: readonly string[];
}

/**
 * Resolves when every engine that comes knows it; null: the directory alone does, because a change is on its way. Never rejects.
 */
export type TellStandIns = (kept: KeptStandIns | null) => Promise<void>;

export interface StandInStoreOptions {
  readonly directory: string;
  readonly log: Log;
  readonly tell?: TellStandIns;
}

/** Of one change; `given up` before it was made. */
type Step = 'waits' | 'making' | 'made' | 'given up';

export class StandInStore implements StandIns {
  readonly #directory: string;
  readonly #log: Log;
  readonly #tell: TellStandIns;
  readonly #records: Map<string, StandIn>;
  readonly #owed = new Set<string>();
  /** One change of the directory after the other, also after those that were given up. */
  #last: Promise<void> = Promise.resolve();
  #changing = 0;

  private constructor(
    { directory, log, tell = async () => undefined }: StandInStoreOptions,
    records: readonly StandIn[],
  ) {
    this.#directory = directory;
    this.#log = log;
    this.#tell = tell;
    this.#records = new Map(records.map((record) => [record.original, record]));
  }

  /**
   * What is in the directory. A file that is no record is left alone, and the log says so. Errors: ETIMEDOUT where the directory does
   * not answer, those of the host where it, or a file in it, cannot be read: who went on would show other images than guests have
   * written to.
   */
  static async load(options: StandInStoreOptions): Promise<StandInStore> {
    const { directory } = options;
    const loading = loadAll(options);
    if (!(await endsWithin(loading, GIVE_UP_MS))) throw noAnswer(directory, 'open');
    const store = new StandInStore(options, await loading);
    void store.#tellKept();
    return store;
  }

  /** What an earlier engine of the mount has told. */
  static inherit(options: StandInStoreOptions, { records, owed }: KeptStandIns): StandInStore {
    const store = new StandInStore(options, records);
    for (const original of owed) store.#takeBack(original);
    return store;
  }

  get all(): readonly StandIn[] {
    return [...this.#records.values()];
  }

  async put(standIn: StandIn): Promise<void> {
    await this.#change(standIn.original, standIn);
  }

  async remove(original: string): Promise<void> {
    await this.#change(original, null);
  }

  /** What is owed is taken back, or the directory still does not answer after five seconds. Never rejects. */
  async settled(): Promise<void> {
    if (this.#owed.size > 0) await endsWithin(this.#last, GIVE_UP_MS);
  }

  async #change(original: string, record: StandIn | null): Promise<void> {
    // An engine that comes now finds the old image or the new one in the directory: both are the same until this returns.
    this.#changing++;
    try {
      await this.#tellKept();
      await this.#makeInTime(original, record);
      if (record === null) this.#records.delete(original);
      else this.#records.set(original, record);
    } finally {
      this.#changing--;
      await this.#tellKept();
    }
  }

  /** Errors: those of the host, and ETIMEDOUT; what the directory has is what it was, or is owed. */
  async #makeInTime(original: string, record: StandIn | null): Promise<void> {
    const path = this.#pathOf(original);
    const progress: { step: Step } = { step: 'waits' };
    const making = this.#enqueue(() =>
      this.#make(original, record, {
        making: () => {
          if (progress.step === 'given up') throw noAnswer(path, 'pivot');
          progress.step = 'making';
        },
        made: () => {
          progress.step = 'made';
        },
      }),
    );
    if (await endsWithin(making, GIVE_UP_MS)) return making;
    if (progress.step === 'made') {
      this.#notSynced(noAnswer(this.#directory, 'pivot'));
      return;
    }
    if (progress.step === 'making') {
      const outlook = 'until it is taken back, a later mount may find it';
      this.#log.error(path, `${NO_ANSWER}: a pivot is given up, and perhaps recorded; ${outlook}`);
      this.#takeBack(original);
    }
    progress.step = 'given up';
    throw noAnswer(path, 'pivot');
  }

  /** The directory says of a view what every engine of this mount goes by, when it has answered. */
  #takeBack(original: string): void {
    const path = this.#pathOf(original);
    this.#owed.add(original);
    void this.#enqueue(() => this.#make(original, this.#records.get(original) ?? null))
      .then(() => {
        this.#owed.delete(original);
        this.#log.info(path, 'what was given up is taken back');
        return this.#tellKept();
      })
      .catch((error: unknown) => {
        this.#log.error(
          path,
          `what was given up is not taken back: ${toBlockError(error).message}`,
        );
      });
  }

  async #make(
    original: string,
    record: StandIn | null,
    steps: Pick<ChangeOptions, 'making' | 'made'> = {},
  ): Promise<void> {
    const path = this.#pathOf(original);
    const options = { ...steps, notSynced: (error: unknown) => this.#notSynced(error) };
    try {
      if (record === null) await removeFile(path, options);
      else await replaceFile(path, recordText(STAND_INS, record), options);
    } catch (error) {
      throw toBlockError(error, { op: 'pivot', path });
    }
  }

  #enqueue(work: () => Promise<void>): Promise<void> {
    const done = this.#last.then(work);
    this.#last = done.catch(() => undefined);
    return done;
  }

  #notSynced(error: unknown): void {
    const reason = toBlockError(error).describe();
    this.#log.error(this.#directory, `a power cut may undo what a view stands for: ${reason}`);
  }

  #tellKept(): Promise<void> {
    return this.#tell(this.#changing > 0 ? null : { records: this.all, owed: [...this.#owed] });
  }

  #pathOf(original: string): string {
    return join(this.#directory, fileName(original));
  }
}

const noAnswer = (path: string, op: string): BlockError =>
  new BlockError({ kind: 'io', errno: 'ETIMEDOUT', message: NO_ANSWER, path, op });

const loadAll = async ({ directory, log }: StandInStoreOptions): Promise<readonly StandIn[]> =>
  readRecords(STAND_INS, {
    directory,
    names: await namesIn(directory, log),
    log,
    unreadable: (thrown, failure) => {
      if (!isNoRecord(thrown, failure)) throw failure.with({ hint: UNREADABLE_HINT });
    },
  });

/** What was never written here: no JSON, no regular file, removed meanwhile. */
const isNoRecord = (thrown: unknown, { errno }: BlockError): boolean =>
  thrown instanceof SyntaxError || NO_RECORD.has(errno);

const NO_RECORD: ReadonlySet<string> = new Set(['EINVAL', 'ELOOP', 'ENXIO', 'ENOENT']);
const UNREADABLE_HINT =
  'it says which image a view has gone on with after a job: mend the disk, or move it away if no view of this mount needs it';

/** Where nothing can have been recorded. */
const UNUSED: ReadonlySet<string> = new Set(['ENOTDIR', 'EACCES']);

const namesIn = async (directory: string, log: Log): Promise<readonly string[]> => {
  try {
    return await recordNames(STAND_INS, directory);
  } catch (error) {
    const failure = toBlockError(error);
    if (!UNUSED.has(failure.errno)) throw failure;
    log.warning(directory, failure.message);
    return [];
  }
};

const SUFFIX = '.view';

const fileName = (original: string): string =>
  `${createHash('sha256').update(original).digest('hex').slice(0, 16)}${SUFFIX}`;

const TEXTS = ['original', 'fileName', 'key', 'target', 'format'] as const;

const STAND_INS: RecordKind<StandIn> = {
  suffix: SUFFIX,
  version: 1,
  isRecord: (fields): fields is StandIn =>
    TEXTS.every((field) => typeof fields[field] === 'string') &&
    typeof fields.named === 'boolean' &&
    (fields.declaredName === null || typeof fields.declaredName === 'string') &&
    (fields.committed === undefined || isTexts(fields.committed)),
  nameOf: ({ original }) => fileName(original),
  isNone: 'says of no view what it stands for: it is left alone',
};

const isTexts = (value: unknown): boolean =>
  Array.isArray(value) && value.every((item) => typeof item === 'string');
