/**
 * The one gate for every file that a header names (backing, data and extent files): images are untrusted, and
 * a header that names `/etc/shadow` must not make it readable. A name is resolved against the directory of the
 * image that holds it, symlinks followed, and must end inside an allowed directory.
 */
import { realpath } from 'node:fs/promises';
import { dirname, isAbsolute, resolve, sep } from 'node:path';
import { BlockError, toBlockError } from '../base/block-error.ts';

/** The longest protocol name that QEMU's rule recognises before a colon. */
const PROTOCOL_NAME = /^([a-z][a-z0-9+.-]*):/i;

export class OpenGate {
  readonly #directories: readonly string[];

  /** `directories`: real, absolute paths (no symlinks in them); see `openGate`. */
  constructor(directories: readonly string[]) {
    this.#directories = directories;
  }

  /**
   * The real path of `filename` as named by the image `referrer`. Errors: EACCES outside the allowed
   * directories and for protocol names, ENOENT when it does not exist.
   */
  async resolve(filename: string, referrer: string): Promise<string> {
    const name = filename.startsWith('file:') ? filename.slice('file:'.length) : filename;
    const protocol = PROTOCOL_NAME.exec(name)?.[1];
    if (protocol !== undefined) {
      throw this.#refused(
        `names '${filename}', and a header may not name a '${protocol}:' source`,
        referrer,
      );
    }
    const path = isAbsolute(name) ? name : resolve(dirname(referrer), name);
    const real = await realpath(path).catch((error: unknown) => {
      throw toBlockError(error, { op: 'open', path });
    });
    if (!this.allows(real)) {
      throw this.#refused(
        `names '${filename}', which is outside the allowed directories`,
        referrer,
        `allow it with --backing-dir ${dirname(real)}`,
      );
    }
    return real;
  }

  /** Whether a real path lies inside an allowed directory. */
  allows(realPath: string): boolean {
    return this.#directories.some(
      (d) => realPath === d || realPath.startsWith(d === sep ? d : d + sep),
    );
  }

  #refused(message: string, path: string, hint?: string): BlockError {
    return new BlockError({
      kind: 'not-permitted',
      errno: 'EACCES',
      message,
      hint,
      path,
      op: 'open',
    });
  }
}

/** A gate over the given directories, symlinks in them resolved. Errors: ENOENT and those of the host. */
export const openGate = async (directories: readonly string[]): Promise<OpenGate> =>
  new OpenGate(await Promise.all(directories.map((d) => realpath(d))));
