/**
 * The one gate for every file that a header names (backing, data and extent files): images are untrusted, and
 * a header that names `/etc/shadow` must not make it readable. A name is resolved against the directory of the
 * image that holds it, symlinks followed, and must end inside an allowed directory.
 */
import { realpath } from 'node:fs/promises';
import { dirname, isAbsolute, sep } from 'node:path';
import { BlockError } from '../base/block-error.ts';
import { type FileName, readFileName } from './file-name.ts';
import { isWithin, realPathOutside } from './real-path.ts';

/** The longest protocol name that QEMU's rule recognises before a colon. */
const PROTOCOL_NAME = /^([a-z][a-z0-9+.-]*):/i;

export class OpenGate {
  readonly #directories: readonly string[];
  readonly #excluded: string | null;

  /**
   * `directories`: real, absolute paths (no symlinks in them); see `openGate`. `excluded`: the real path of our own
   * mountpoint, which is never touched; null for none.
   */
  constructor(directories: readonly string[], excluded: string | null = null) {
    this.#directories = directories;
    this.#excluded = excluded;
  }

  /**
   * The real path of `filename` as named by the image `referrer`. Errors: EACCES outside the allowed
   * directories and for protocol names, ENOENT when it does not exist; those of `readFileName`.
   */
  async resolve(filename: string, referrer: string): Promise<string> {
    const { path } = await this.resolveLink({ filename, format: null }, referrer);
    return path;
  }

  /**
   * As `resolve`, with the format: that of the link where it declares one, else what a `json:` name says; null for none.
   */
  async resolveLink(
    { filename, format }: { readonly filename: string; readonly format: string | null },
    referrer: string,
  ): Promise<{ readonly path: string; readonly format: string | null }> {
    const named = readFileName(filename, referrer);
    const path = await this.#resolveName(named, filename, referrer);
    return { path, format: format ?? named.format };
  }

  async #resolveName(
    { name, isPath }: FileName,
    filename: string,
    referrer: string,
  ): Promise<string> {
    const protocol = isPath ? undefined : PROTOCOL_NAME.exec(name)?.[1];
    if (protocol !== undefined) {
      throw this.#refused(
        `names '${filename}', and a header may not name a '${protocol}:' source`,
        referrer,
      );
    }
    const path = isAbsolute(name) ? name : `${dirname(referrer)}${sep}${name}`;
    const real = await realPathOutside(path, this.#excluded);
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
    return this.#directories.some((d) => isWithin(realPath, d));
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

/**
 * A gate over the given directories, symlinks in them resolved; `excluded` as for the constructor. Errors: ENOENT
 * and those of the host.
 */
export const openGate = async (
  directories: readonly string[],
  excluded: string | null = null,
): Promise<OpenGate> =>
  new OpenGate(await Promise.all(directories.map((d) => realpath(d))), excluded);
