/**
 * Which files views stand for after a pivot, in the state directory: one file for each, so that engines and mounts that come
 * later know it. It is named by the original's path and replaced in one rename.
 */
import { createHash } from 'node:crypto';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { StandIn, StandIns } from '../../mount/catalog/stand-ins.ts';
import { toBlockError } from '../base/block-error.ts';
import { type ChangeOptions, removeFile, replaceFile } from '../base/durable-file.ts';
import type { Log } from '../base/log.ts';

const SUFFIX = '.view';
const VERSION = 1;
const MAX_RECORD_BYTES = 64 << 10;

export class StandInStore implements StandIns {
  readonly #directory: string;
  readonly #log: Log;
  readonly #records: Map<string, StandIn>;
  readonly #options: ChangeOptions = {
    notSynced: (error) => {
      const reason = toBlockError(error).describe();
      this.#log.error(this.#directory, `a power cut may undo what a view stands for: ${reason}`);
    },
  };

  private constructor(directory: string, log: Log, records: Map<string, StandIn>) {
    this.#directory = directory;
    this.#log = log;
    this.#records = records;
  }

  /** What earlier engines have left. A file that cannot be read is left alone, and the log says so. */
  static async load(directory: string, log: Log): Promise<StandInStore> {
    const names = await readdir(directory).catch(() => []);
    const records = new Map<string, StandIn>();
    for (const name of names.filter((n) => n.endsWith(SUFFIX))) {
      const path = join(directory, name);
      try {
        const record = parse(await readFile(path, 'utf8'));
        if (record !== null && fileName(record.original) === name)
          records.set(record.original, record);
        else log.warning(path, 'says of no view what it stands for: it is left alone');
      } catch (error) {
        log.warning(path, toBlockError(error).describe());
      }
    }
    return new StandInStore(directory, log, records);
  }

  get all(): readonly StandIn[] {
    return [...this.#records.values()];
  }

  async put(standIn: StandIn): Promise<void> {
    const { original } = standIn;
    const path = this.#pathOf(original);
    const text = `${JSON.stringify({ version: VERSION, ...standIn })}\n`;
    try {
      await replaceFile(path, text, this.#options);
    } catch (error) {
      throw toBlockError(error, { op: 'pivot', path });
    }
    this.#records.set(original, standIn);
  }

  async remove(original: string): Promise<void> {
    const path = this.#pathOf(original);
    await removeFile(path, this.#options).catch((error: unknown) => {
      throw toBlockError(error, { op: 'pivot', path });
    });
    this.#records.delete(original);
  }

  #pathOf(original: string): string {
    return join(this.#directory, fileName(original));
  }
}

const fileName = (original: string): string =>
  `${createHash('sha256').update(original).digest('hex').slice(0, 16)}${SUFFIX}`;

const TEXTS = ['original', 'fileName', 'key', 'target', 'format'] as const;

const parse = (text: string): StandIn | null => {
  if (text.length > MAX_RECORD_BYTES) return null;
  const value = JSON.parse(text) as Partial<StandIn> & { readonly version?: unknown };
  const { version, ...record } = value;
  const isRight =
    version === VERSION &&
    TEXTS.every((field) => typeof record[field] === 'string') &&
    typeof record.named === 'boolean' &&
    (record.declaredName === null || typeof record.declaredName === 'string') &&
    (record.committed === undefined || isTexts(record.committed));
  return isRight ? (record as StandIn) : null;
};

const isTexts = (value: unknown): boolean =>
  Array.isArray(value) && value.every((item) => typeof item === 'string');
