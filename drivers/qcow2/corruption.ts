/**
 * Corruption that a request meets: an entry or a refcount that would make guest data land in metadata, or metadata where
 * nothing is (specification: "Incompatible features", bit 1). The write fails, the image is marked, durably, before it does,
 * and takes no more writes; what can be read still is, and what was answered before still reaches the disk.
 */
import { BlockError, invalidImage } from '../../src/base/block-error.ts';
import type { OpenRequest } from '../../src/block/driver.ts';
import type { HeaderChanges } from '../../src/block/header-changes.ts';
import { HEADER, INCOMPATIBLE } from './layout.ts';

/** The low word of the incompatible features: no other bit changes. */
const WORD_AT = HEADER.incompatible + 4;
const HINT = 'repair it: vdiskfs check -r all';

const found = new WeakSet<BlockError>();

/** As `invalidImage`, of tables that contradict each other: a write that meets it marks the image. */
export const corruption = (
  message: string,
  context: Parameters<typeof invalidImage>[1],
): BlockError => {
  const error = invalidImage(message, context);
  found.add(error);
  return error;
};

const isCorruption = (error: unknown): error is BlockError =>
  error instanceof BlockError && found.has(error);

export interface CorruptMarkOptions {
  /** Version 3. */
  readonly hasBit: boolean;
  readonly changes: HeaderChanges;
  /** Nobody writes beside the driver when it returns. */
  readonly stopInPlace: () => void;
}

export class CorruptMark {
  readonly #request: OpenRequest;
  readonly #options: CorruptMarkOptions;
  #reason: string | null = null;
  #marking: Promise<void> | null = null;

  constructor(request: OpenRequest, options: CorruptMarkOptions) {
    this.#request = request;
    this.#options = options;
  }

  /** This opening of the image has found it corrupt. */
  get isSet(): boolean {
    return this.#reason !== null;
  }

  /** Runs something that changes the image. Errors: its own; EIO when the image was found corrupt before. */
  async guard<T>(change: () => Promise<T>): Promise<T> {
    this.#refuse();
    try {
      return await change();
    } catch (error) {
      if (isCorruption(error)) await this.#set(error);
      throw error;
    }
  }

  #refuse(): void {
    if (this.#reason === null) return;
    const message = `takes no more writes, it was found corrupt: ${this.#reason}`;
    throw new BlockError({ kind: 'io', message, hint: HINT, path: this.#request.path });
  }

  #set(error: BlockError): Promise<void> {
    this.#marking ??= this.#write(error);
    return this.#marking;
  }

  async #write(error: BlockError): Promise<void> {
    const { log, path } = this.#request;
    this.#reason = error.message;
    this.#options.stopInPlace();
    log.error(path, `is corrupt, and is only read from now on: ${error.describe()}; ${HINT}`);
    if (!this.#options.hasBit) return;
    try {
      await this.#options.changes.edit(WORD_AT, 4, (view) => {
        view.setUint32(0, (view.getUint32(0) | INCOMPATIBLE.corrupt) >>> 0);
      });
    } catch (failure) {
      log.error(path, `cannot be marked corrupt: ${String(failure)}`);
    }
  }
}
