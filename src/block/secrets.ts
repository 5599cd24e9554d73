/**
 * Keys of encrypted images (`--secret id=ID,file=FILE[,image=NAME]`). Only their files' names go from process to process;
 * a key is read where it is needed, and again each time: a file that was put right is, and a new engine can open what the
 * old one had open.
 */
import { open } from 'node:fs/promises';
import { basename, extname, resolve } from 'node:path';
import { BlockError, toBlockError } from '../base/block-error.ts';

/** Where a key is. */
export interface SecretSource {
  readonly id: string;
  readonly file: string;
  /** Tried on this image alone: its absolute path, the name of its file, that without extension, or its view's. Null: on all. */
  readonly image: string | null;
}

/** The longest key file that is read. */
const MAX_SECRET_BYTES = 64 << 10;

/** A key in memory. What prints it, shows its id alone. */
export class Secret {
  readonly id: string;
  readonly #bytes: Uint8Array;

  constructor(id: string, bytes: Uint8Array) {
    this.id = id;
    this.#bytes = bytes;
  }

  /** Every byte of the file, as QEMU takes it: a newline at its end counts. */
  get bytes(): Uint8Array {
    return this.#bytes;
  }
}

export class Secrets {
  readonly #sources: readonly SecretSource[];
  readonly #kept: Map<string, Promise<Secret>> | null;

  /** `keep`: each file is read once, so that it may be a pipe; for commands that end soon. */
  constructor(sources: readonly SecretSource[], { keep }: { readonly keep: boolean }) {
    this.#sources = sources;
    this.#kept = keep ? new Map() : null;
  }

  /** Those that are for an image, in the order in which they were given. Errors: those of a key's file, naming it. */
  forImage(path: string): Promise<readonly Secret[]> {
    const [file, stem] = [basename(path), basename(path, extname(path))];
    const names = [resolve(path), file, stem, `${file}.raw`, `${stem}.raw`];
    const ours = this.#sources.filter(({ image }) => image === null || names.includes(image));
    return Promise.all(ours.map((s) => this.#read(s)));
  }

  /** The one of an id; null when there is none. Errors: those of its file. */
  async byId(id: string): Promise<Secret | null> {
    const source = this.#sources.find((s) => s.id === id);
    return source === undefined ? null : this.#read(source);
  }

  /** Reads every key once. Errors: those of the first file that cannot be read, or is empty. */
  async check(): Promise<void> {
    for (const source of this.#sources) await this.#read(source);
  }

  #read(source: SecretSource): Promise<Secret> {
    const reading = this.#kept?.get(source.id) ?? readSecret(source);
    this.#kept?.set(source.id, reading);
    return reading;
  }
}

const readSecret = async ({ id, file }: SecretSource): Promise<Secret> => {
  const wrong = (message: string): BlockError =>
    new BlockError({
      kind: 'not-permitted',
      message: `the key of secret '${id}' ${message}`,
      path: file,
      op: 'open',
    });
  try {
    const handle = await open(file, 'r');
    try {
      const bytes = Buffer.alloc(MAX_SECRET_BYTES + 1);
      let length = 0;
      for (;;) {
        const { bytesRead } = await handle.read(bytes, length, bytes.length - length, null);
        if (bytesRead === 0) break;
        length += bytesRead;
      }
      if (length === 0) throw wrong('is empty');
      if (length > MAX_SECRET_BYTES) throw wrong(`is longer than ${MAX_SECRET_BYTES} bytes`);
      return new Secret(id, Uint8Array.from(bytes.subarray(0, length)));
    } finally {
      await handle.close();
    }
  } catch (error) {
    if (error instanceof BlockError) throw error;
    throw wrong(`cannot be read: ${toBlockError(error).message}`);
  }
};
