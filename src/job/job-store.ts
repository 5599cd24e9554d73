/**
 * Jobs on disk: what a later engine, or a later mount of the same images, needs to take them up again. One file for each
 * job, which a power cut leaves as it was or as it has become (durable-file.ts). A store that cannot be written costs no I/O of
 * a guest and no job: the log says so.
 */
import { join } from 'node:path';
import { toBlockError } from '../base/block-error.ts';
import { endsWithin, GIVE_UP_MS } from '../base/bounded-wait.ts';
import { type ChangeOptions, removeFile, replaceFile } from '../base/durable-file.ts';
import type { Log } from '../base/log.ts';
import { type RecordKind, readRecords, recordNames, recordText } from '../base/record-files.ts';

const NOT_LOADED = 'jobs that are kept there wait for the next engine, or mount';

export interface JobRecord {
  readonly id: string;
  /** The QMP command that starts it again, with its arguments. */
  readonly command: string;
  readonly arguments: Readonly<Record<string, unknown>>;
  /** Of the view's image: the job is of no other. */
  readonly imagePath: string;
  readonly paused: boolean;
  /** Of a job that has ended; null while it works. */
  readonly result: JobResult | null;
}

/** What came of a job. */
export interface JobResult {
  readonly error: string | null;
  readonly offset: number;
  readonly lengthBytes: number;
}

export class JobStore {
  readonly #directory: string;
  readonly #log: Log;
  /** What is on disk, or would be if it could be written. */
  readonly #records = new Map<string, JobRecord>();
  /** What is in the files that were written here, by id. */
  readonly #texts = new Map<string, string>();
  /** One change of the directory after the other. */
  #pending: Promise<void> = Promise.resolve();
  readonly #complaints = new Set<string>();
  readonly #options: ChangeOptions = {
    notSynced: (error) => this.#complain('a power cut may undo what is kept of jobs', error),
  };

  /** `directory` is made when the first job is kept. */
  constructor(directory: string, log: Log) {
    this.#directory = directory;
    this.#log = log;
  }

  /** Begins to write, unless what was written last is the same (nobody looks whether it is still there); never throws. */
  keep(record: JobRecord): void {
    this.#records.set(record.id, record);
    this.#enqueue(() => this.#write(record.id));
  }

  /** Of the jobs on one image, also when the directory could not be written. */
  recordsOf(imagePath: string): readonly JobRecord[] {
    return [...this.#records.values()].filter((record) => record.imagePath === imagePath);
  }

  forget(id: string): void {
    this.#records.delete(id);
    this.#enqueue(() => this.#remove(id));
  }

  /** Whether there is something to load, as far as names tell. */
  async hasRecords(): Promise<boolean> {
    return (await this.#names()).length > 0;
  }

  /**
   * What earlier engines have left, in no order. A file that cannot be read is left out, and so is everything where the directory
   * cannot be, or does not answer for five seconds: the log says so.
   */
  async load(): Promise<readonly JobRecord[]> {
    const loading = this.#load();
    if (await endsWithin(loading, GIVE_UP_MS)) return loading;
    this.#log.warning(this.#directory, `does not answer for ${GIVE_UP_MS / 1000} s: ${NOT_LOADED}`);
    return [];
  }

  async #load(): Promise<readonly JobRecord[]> {
    const [directory, log] = [this.#directory, this.#log];
    const records = await readRecords(JOBS, { directory, names: await this.#names(), log });
    for (const record of records) this.#records.set(record.id, record);
    return records;
  }

  /** Everything asked for so far is on disk, or has failed. */
  async settled(): Promise<void> {
    await this.#pending;
  }

  async #names(): Promise<readonly string[]> {
    try {
      return await recordNames(JOBS, this.#directory);
    } catch (error) {
      this.#complain(NOT_LOADED, error);
      return [];
    }
  }

  /** What is known of it by now: a job tells of each of its states, and hardly any of them makes a difference here. */
  async #write(id: string): Promise<void> {
    const record = this.#records.get(id);
    if (record === undefined) return;
    const text = recordText(JOBS, record);
    if (this.#texts.get(id) === text) return;
    this.#texts.delete(id);
    await replaceFile(this.#pathOf(id), text, this.#options);
    this.#texts.set(id, text);
  }

  async #remove(id: string): Promise<void> {
    this.#texts.delete(id);
    await removeFile(this.#pathOf(id), this.#options);
  }

  #enqueue(work: () => Promise<void>): void {
    this.#pending = this.#pending
      .then(work)
      .catch((error: unknown) => this.#complain('jobs will not go on after a restart', error));
  }

  /** Once of each outcome. */
  #complain(outcome: string, error: unknown): void {
    if (this.#complaints.has(outcome)) return;
    this.#complaints.add(outcome);
    this.#log.warning(this.#directory, `${outcome}: ${toBlockError(error).message}`);
  }

  #pathOf(id: string): string {
    return join(this.#directory, fileName(id));
  }
}

const SUFFIX = '.job';
// Ids are well formed: letters, digits, `-`, `.`, `_`, a letter first.
const fileName = (id: string): string => `${id}${SUFFIX}`;

const JOBS: RecordKind<JobRecord> = {
  suffix: SUFFIX,
  version: 1,
  isRecord: (fields): fields is JobRecord =>
    typeof fields.id === 'string' &&
    typeof fields.command === 'string' &&
    typeof fields.imagePath === 'string' &&
    typeof fields.paused === 'boolean' &&
    (fields.result === null || typeof fields.result === 'object') &&
    typeof fields.arguments === 'object' &&
    fields.arguments !== null,
  nameOf: ({ id }) => fileName(id),
  isNone: 'is no job of this version: it is left alone',
};
