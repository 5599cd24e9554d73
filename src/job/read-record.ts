/**
 * What a guest reads, in order, in a file: so that the next host that boots the same disk can fetch it first. One line of JSON
 * for each stretch: `{"offset":…,"length":…,"ms":…}`, bytes and milliseconds since the first read.
 *
 * A record is a help and no promise: what cannot be written is left out, and costs no read.
 */
import { createReadStream } from 'node:fs';
import { mkdir, open, stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { createInterface } from 'node:readline';
import { BlockError, toBlockError } from '../base/block-error.ts';
import type { Log } from '../base/log.ts';

/** Longer records are cut: a boot reads some thousand stretches. */
const MAX_LINES = 1_000_000;
const MAX_BYTES = MAX_LINES * 200;
const WRITE_EVERY_MS = 500;

export interface ReadRange {
  readonly offset: number;
  readonly lengthBytes: number;
}

interface Stretch {
  readonly offset: number;
  length: number;
  readonly ms: number;
}

/** Records the reads of one view. */
export class ReadRecorder {
  readonly #path: string;
  readonly #log: Log;
  #begunMs: number | null = null;
  #last: Stretch | null = null;
  #lines: string[] = [];
  #count = 0;
  #timer: NodeJS.Timeout | null = null;
  #writing: Promise<void> = Promise.resolve();
  #isFresh: boolean;

  /** The file is made at the first read, in the place of an older one unless `append`. */
  constructor(path: string, log: Log, { append = false }: { readonly append?: boolean } = {}) {
    this.#path = path;
    this.#log = log;
    this.#isFresh = !append;
  }

  /** A read that a guest has asked for. */
  note(offset: number, lengthBytes: number): void {
    if (this.#count >= MAX_LINES) return;
    const now = performance.now();
    this.#begunMs ??= now;
    if (this.#last !== null && this.#last.offset + this.#last.length === offset) {
      this.#last.length += lengthBytes;
      return;
    }
    this.#finishStretch();
    this.#last = { offset, length: lengthBytes, ms: Math.round(now - this.#begunMs) };
    this.#timer ??= setTimeout(() => this.#write(), WRITE_EVERY_MS);
  }

  /** Everything noted so far is in the file. Never throws. */
  async close(): Promise<void> {
    this.#write();
    await this.#writing;
  }

  #finishStretch(): void {
    if (this.#last === null) return;
    this.#lines.push(`${JSON.stringify(this.#last)}\n`);
    this.#count++;
    this.#last = null;
  }

  #write(): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
    this.#finishStretch();
    const text = this.#lines.join('');
    this.#lines = [];
    if (text === '') return;
    this.#writing = this.#writing
      .then(() => this.#append(text))
      .catch((error: unknown) => {
        this.#count = MAX_LINES;
        const reason = toBlockError(error).describe();
        this.#log.warning(this.#path, `what is read is not recorded: ${reason}`);
      });
  }

  async #append(text: string): Promise<void> {
    await mkdir(dirname(this.#path), { recursive: true, mode: 0o700 });
    const file = await open(this.#path, this.#isFresh ? 'w' : 'a', 0o600);
    try {
      await file.writeFile(text);
      this.#isFresh = false;
    } finally {
      await file.close();
    }
  }
}

/**
 * The stretches of a record, in order; null when there is none. A FIFO, for one, would keep its reader for ever. Errors: EINVAL for
 * what is no regular file or is too large, and for a line that is no stretch; those of the host.
 */
export const loadRecord = async (path: string): Promise<readonly ReadRange[] | null> => {
  const found = await stat(path).catch(() => null);
  if (found === null) return null;
  if (!found.isFile()) throw badRecord(path, 'is no regular file');
  if (found.size > MAX_BYTES)
    throw badRecord(path, `has ${found.size} bytes, ${MAX_BYTES} at most`);
  const ranges: ReadRange[] = [];
  const lines = createInterface({ input: createReadStream(path) });
  for await (const line of lines) {
    if (ranges.length >= MAX_LINES) break;
    const range = rangeOf(line);
    if (range === null)
      throw badRecord(path, `line ${ranges.length + 1}: is no stretch of a record`);
    ranges.push(range);
  }
  return ranges;
};

const badRecord = (path: string, message: string): BlockError =>
  new BlockError({ kind: 'bad-request', message, path, op: 'prefetch' });

const rangeOf = (line: string): ReadRange | null => {
  let value: { offset?: unknown; length?: unknown } | null;
  try {
    value = JSON.parse(line) as typeof value;
  } catch {
    return null;
  }
  const { offset, length } = value ?? {};
  const isRange =
    Number.isSafeInteger(offset) &&
    Number.isSafeInteger(length) &&
    Number(offset) >= 0 &&
    Number(length) > 0;
  return isRange ? { offset: Number(offset), lengthBytes: Number(length) } : null;
};
