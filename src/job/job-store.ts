/**
 * Jobs on disk: what a later engine, or a later mount of the same images, needs to take them up again. One file for each
 * job. A store that cannot be written costs no I/O of a guest and no job: the log says so.
 */
import { mkdir, open, readdir, readFile, rename, rm, rmdir } from 'node:fs/promises';
import { join } from 'node:path';
import { toBlockError } from '../base/block-error.ts';
import type { Log } from '../base/log.ts';

const PRIVATE_DIRECTORY = 0o700;
const PRIVATE_FILE = 0o600;
const MAX_RECORD_BYTES = 64 << 10;
const VERSION = 1;

export interface JobRecord {
  readonly id: string;
  /** The QMP command that starts it again, with its arguments. */
  readonly command: string;
  readonly arguments: Readonly<Record<string, unknown>>;
  /** Of the view's image: the job is of no other. */
  readonly imagePath: string;
  readonly paused: boolean;
  /** Of a job that has ended and waits to be dismissed; null while it works. */
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
  /** One change of the directory after the other. */
  #pending: Promise<void> = Promise.resolve();
  #complained = false;

  /** `directory` is made when the first job is kept. */
  constructor(directory: string, log: Log) {
    this.#directory = directory;
    this.#log = log;
  }

  /** Begins to write; never throws. */
  keep(record: JobRecord): void {
    this.#records.set(record.id, record);
    this.#enqueue(() => this.#write(record));
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

  /** What earlier engines have left, in no order. A file that cannot be read is left out, and the log says so. */
  async load(): Promise<readonly JobRecord[]> {
    const names = await this.#names();
    const records: JobRecord[] = [];
    for (const name of names) {
      const path = join(this.#directory, name);
      try {
        const record = parse(await readFile(path, 'utf8'));
        if (record !== null && fileName(record.id) === name) records.push(record);
        else this.#log.warning(path, 'is no job of this version: it is left alone');
      } catch (error) {
        this.#log.warning(path, toBlockError(error).describe());
      }
    }
    for (const record of records) this.#records.set(record.id, record);
    return records;
  }

  /** Everything asked for so far is on disk, or has failed. */
  async settled(): Promise<void> {
    await this.#pending;
  }

  async #names(): Promise<string[]> {
    const names = await readdir(this.#directory).catch(() => []);
    return names.filter((name) => name.endsWith('.job'));
  }

  async #write(record: JobRecord): Promise<void> {
    await mkdir(this.#directory, { recursive: true, mode: PRIVATE_DIRECTORY });
    const path = this.#pathOf(record.id);
    const file = await open(`${path}.new`, 'w', PRIVATE_FILE);
    try {
      await file.writeFile(`${JSON.stringify({ version: VERSION, ...record })}\n`);
      await file.datasync();
    } finally {
      await file.close();
    }
    await rename(`${path}.new`, path);
  }

  /** A directory without jobs goes, too. */
  async #remove(id: string): Promise<void> {
    await rm(this.#pathOf(id), { force: true });
    await rmdir(this.#directory).catch(() => undefined);
  }

  #enqueue(work: () => Promise<void>): void {
    this.#pending = this.#pending.then(work).catch((error: unknown) => {
      if (this.#complained) return;
      this.#complained = true;
      const reason = toBlockError(error).describe();
      this.#log.warning(this.#directory, `jobs will not go on after a restart: ${reason}`);
    });
  }

  #pathOf(id: string): string {
    return join(this.#directory, fileName(id));
  }
}

// Ids are well formed: letters, digits, `-`, `.`, `_`, a letter first.
const fileName = (id: string): string => `${id}.job`;

const parse = (text: string): JobRecord | null => {
  if (text.length > MAX_RECORD_BYTES) return null;
  const value = JSON.parse(text) as Partial<JobRecord> & { readonly version?: unknown };
  const isRight =
    value.version === VERSION &&
    typeof value.id === 'string' &&
    typeof value.command === 'string' &&
    typeof value.imagePath === 'string' &&
    typeof value.paused === 'boolean' &&
    (value.result === null || typeof value.result === 'object') &&
    typeof value.arguments === 'object' &&
    value.arguments !== null;
  return isRight ? (value as JobRecord) : null;
};
