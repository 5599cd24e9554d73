/**
 * The restart journal as files on tmpfs (the runtime directory): one file a generation, named by the image's device and
 * inode, made when the first record is appended. What SIGKILL leaves there is offered to whoever opens that image for
 * writing next, in this boot; after a power cut nothing of it counts.
 *
 *     header  112 bytes: magic, boot id (36 bytes), device f64, inode f64, the file's time of birth in ms f64, tenure of the image's lock
 *             (36 bytes, zeros for none), mark u32
 *     record  length u32, CRC-32 of the content u32, content; a torn or damaged one ends the file
 */
import { randomInt } from 'node:crypto';
import {
  closeSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  unlinkSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { crc32 } from 'node:zlib';
import { BlockError, toBlockError } from '../base/block-error.ts';
import { viewOf } from '../base/byte-order.ts';
import type { Log } from '../base/log.ts';
import type { FileIdentity } from './file-identity.ts';
import type { ImageLock } from './image-locks.ts';
import type { RestartJournal } from './restart-journal.ts';

const MAGIC = Buffer.from('VDKJRNL4');
const HEADER_BYTES = 112;
const BOOT_ID_AT = 8;
const DEVICE_AT = 48;
const INODE_AT = 56;
const BIRTH_AT = 64;
const TENURE_AT = 72;
const MARK_AT = 108;
const RECORD_HEAD_BYTES = 8;
const MARK_LIMIT = 2 ** 31;

export interface JournalFactoryOptions {
  readonly directory: string;
  readonly log: Log;
  /** Of this boot; tests pretend another. */
  readonly bootId?: string;
  /** Writes bytes from an index on at the end of the file, and returns how many; tests make it fail. */
  readonly write?: (fd: number, bytes: Uint8Array, from: number) => number;
}

const currentBootId = (): string => readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();

/** Journals in one directory. An image has one user at a time: its lock sees to that. Errors: those of the host. */
export const createJournalFactory = (options: JournalFactoryOptions): JournalFactory => {
  const bootId = options.bootId ?? currentBootId();
  return async (file, { tenure }) => new JournalFile(options, bootId, { file, tenure });
};

/** `lock`: that of the image, for writing. */
export type JournalFactory = (
  file: FileIdentity,
  lock: Pick<ImageLock, 'tenure'>,
) => Promise<RestartJournal>;

class JournalFile implements RestartJournal {
  isContinued: boolean;
  #leftover: readonly Uint8Array[];
  readonly #options: JournalFactoryOptions;
  readonly #header: Uint8Array;
  readonly #prefix: string;
  /** Generations that have a file, oldest first, and how long each is. */
  readonly #generations = new Map<number, number>();
  #current: number;
  /** Those before it are forgotten when the checkpoint ends. A record that fails begins a generation too, and changes nothing here. */
  #oldestKept: number;
  #fd: number | null = null;

  constructor(
    options: JournalFactoryOptions,
    bootId: string,
    { file, tenure }: { readonly file: FileIdentity; readonly tenure: string | null },
  ) {
    this.#options = options;
    this.#prefix = `${file.device}-${file.inode}.`;
    this.#header = encodeHeader(bootId, file, tenure);
    this.isContinued = tenure !== null;
    const found = this.#filesFound();
    this.#leftover = found.flatMap((generation) => this.#readGeneration(generation, file.path));
    this.#current = (found.at(-1) ?? 0) + 1;
    this.#oldestKept = this.#current;
  }

  get leftover(): readonly Uint8Array[] {
    return this.#leftover;
  }

  get mark(): number {
    return viewOf(this.#header).getUint32(MARK_AT);
  }

  get pendingBytes(): number {
    let sum = 0;
    for (const bytes of this.#generations.values()) sum += bytes;
    return sum;
  }

  append(record: Uint8Array): void {
    const bytes = new Uint8Array(RECORD_HEAD_BYTES + record.length);
    const view = viewOf(bytes);
    view.setUint32(0, record.length);
    view.setUint32(4, crc32(record));
    bytes.set(record, RECORD_HEAD_BYTES);
    try {
      this.#write(this.#fd ?? this.#create(), bytes);
    } catch (error) {
      const path = this.#pathOf(this.#current);
      // Half a record would hide all that follow it: the generation ends here.
      this.#beginGeneration();
      throw toBlockError(error, { op: 'journal', path });
    }
    this.#generations.set(
      this.#current,
      (this.#generations.get(this.#current) ?? 0) + bytes.length,
    );
  }

  begin(): void {
    this.#beginGeneration();
    this.#oldestKept = this.#current;
  }

  #beginGeneration(): void {
    const fd = this.#fd;
    this.#fd = null;
    this.#current++;
    if (fd !== null) closeSync(fd);
  }

  end(): void {
    this.#leftover = [];
    for (const generation of this.#generations.keys()) {
      if (generation < this.#oldestKept) this.#remove(generation);
    }
  }

  close(): void {
    this.begin();
    this.end();
  }

  #create(): number {
    const fd = this.#openNew(this.#pathOf(this.#current));
    this.#fd = fd;
    this.#generations.set(this.#current, 0);
    this.#write(fd, this.#header);
    return fd;
  }

  #write(fd: number, bytes: Uint8Array): void {
    const { write = writeSync } = this.#options;
    for (let done = 0; done < bytes.length; ) {
      const written = write(fd, bytes, done);
      if (written <= 0) throw new BlockError({ kind: 'io', message: 'nothing was written' });
      done += written;
    }
  }

  // Somebody may have tidied the runtime directory away.
  #openNew(path: string): number {
    try {
      return openSync(path, 'wx', 0o600);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
      mkdirSync(this.#options.directory, { recursive: true, mode: 0o700 });
      return openSync(path, 'wx', 0o600);
    }
  }

  #remove(generation: number): void {
    try {
      unlinkSync(this.#pathOf(generation));
    } catch (error) {
      // Gone already: somebody tidied the runtime directory. What is still there is removed after the next checkpoint.
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
    }
    this.#generations.delete(generation);
  }

  #filesFound(): number[] {
    return namesIn(this.#options.directory)
      .filter((name) => name.startsWith(this.#prefix) && /\.\d+$/.test(name))
      .map((name) => Number(name.slice(this.#prefix.length)))
      .sort((a, b) => a - b);
  }

  #pathOf(generation: number): string {
    return join(this.#options.directory, `${this.#prefix}${generation}`);
  }

  #readGeneration(generation: number, imagePath: string): Uint8Array[] {
    const path = this.#pathOf(generation);
    const bytes = new Uint8Array(readFileSync(path));
    this.#generations.set(generation, bytes.length);
    const [ours, found] = [this.#header, bytes.subarray(0, HEADER_BYTES)];
    const isSame = (start: number, end: number): boolean =>
      Buffer.compare(found.subarray(start, end), ours.subarray(start, end)) === 0;
    if (found.length === HEADER_BYTES && isSame(0, TENURE_AT)) {
      if (!isSame(TENURE_AT, MARK_AT)) this.isContinued = false;
      // Those of all generations are the same.
      viewOf(ours).setUint32(MARK_AT, viewOf(found).getUint32(MARK_AT));
      return recordsOf(bytes);
    }
    if (bytes.length > HEADER_BYTES) {
      const text = `the restart journal ${path} is of another boot, another file or another version of vdiskfs: what it holds is not applied`;
      this.#options.log.warning(imagePath, text);
    }
    this.#remove(generation);
    return [];
  }
}

const namesIn = (directory: string): string[] => {
  try {
    return readdirSync(directory);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw error;
  }
};

const encodeHeader = (bootId: string, file: FileIdentity, tenure: string | null): Uint8Array => {
  const bytes = new Uint8Array(HEADER_BYTES);
  bytes.set(MAGIC);
  bytes.set(Buffer.from(bootId.slice(0, DEVICE_AT - BOOT_ID_AT)), BOOT_ID_AT);
  viewOf(bytes).setFloat64(DEVICE_AT, file.device);
  viewOf(bytes).setFloat64(INODE_AT, file.inode);
  viewOf(bytes).setFloat64(BIRTH_AT, file.birthMs);
  bytes.set(Buffer.from(tenure ?? '').subarray(0, MARK_AT - TENURE_AT), TENURE_AT);
  viewOf(bytes).setUint32(MARK_AT, randomInt(MARK_LIMIT));
  return bytes;
};

const recordsOf = (bytes: Uint8Array): Uint8Array[] => {
  const view = viewOf(bytes);
  const records: Uint8Array[] = [];
  for (let at = HEADER_BYTES; at + RECORD_HEAD_BYTES <= bytes.length; ) {
    const length = view.getUint32(at);
    const start = at + RECORD_HEAD_BYTES;
    const content = bytes.subarray(start, start + length);
    if (content.length < length || crc32(content) !== view.getUint32(at + 4)) break;
    records.push(content);
    at = start + length;
  }
  return records;
};
