/**
 * Directories of small records, each in a file of its own as JSON with a version: what engines and mounts that come later go on
 * from. They are written by `replaceFile` (durable-file.ts).
 */
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { type BlockError, toBlockError } from './block-error.ts';
import { readSmallFile } from './durable-file.ts';
import type { Log } from './log.ts';

export interface RecordKind<T extends object> {
  /** What the names of its files end in. */
  readonly suffix: string;
  readonly version: number;
  readonly isRecord: (fields: Partial<T>) => fields is T;
  /** The name of its file. */
  readonly nameOf: (record: T) => string;
  /** What the log says of a file that has something else. */
  readonly isNone: string;
}

export interface RecordFiles {
  readonly directory: string;
  /** As `recordNames` finds them. */
  readonly names: readonly string[];
  readonly log: Log;
  /** One cannot be read, or is no JSON (`thrown` is a SyntaxError then). It is passed over unless this throws. */
  readonly unreadable?: (thrown: unknown, failure: BlockError) => void;
}

/** What the file of a record has. */
export const recordText = <T extends object>({ version }: RecordKind<T>, record: T): string =>
  `${JSON.stringify({ version, ...record })}\n`;

/** Names of files; none where there is no directory. Errors: those of the host. */
export const recordNames = async <T extends object>(
  { suffix }: RecordKind<T>,
  directory: string,
): Promise<readonly string[]> => {
  try {
    return (await readdir(directory)).filter((name) => name.endsWith(suffix));
  } catch (error) {
    const failure = toBlockError(error, { op: 'open', path: directory });
    if (failure.errno === 'ENOENT') return [];
    throw failure;
  }
};

/**
 * The records of a directory, in the order of `names`. What is none, or cannot be read, is left out, and the log says so. Errors: those of
 * `unreadable`.
 */
export const readRecords = async <T extends object>(
  kind: RecordKind<T>,
  { directory, names, log, unreadable }: RecordFiles,
): Promise<readonly T[]> => {
  const records: T[] = [];
  for (const name of names) {
    const path = join(directory, name);
    try {
      const record = recordIn(kind, await readSmallFile(path));
      if (record !== null && kind.nameOf(record) === name) records.push(record);
      else log.warning(path, kind.isNone);
    } catch (thrown) {
      const failure = toBlockError(thrown, { op: 'open', path });
      unreadable?.(thrown, failure);
      log.warning(path, failure.message);
    }
  }
  return records;
};

const recordIn = <T extends object>(kind: RecordKind<T>, text: string): T | null => {
  const value: unknown = JSON.parse(text);
  if (typeof value !== 'object' || value === null) return null;
  const { version, ...fields } = value as Partial<T> & { readonly version?: unknown };
  const found = fields as Partial<T>;
  return version === kind.version && kind.isRecord(found) ? found : null;
};
