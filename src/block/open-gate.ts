/**
 * The one gate for every file that a header names (backing, data and extent files): images are untrusted, and
 * a header that names `/etc/shadow`, or a server in the house, must not make it readable. A name is resolved against the
 * directory of the image that holds it, symlinks followed, and must end inside an allowed directory or below an allowed
 * URL.
 */
import { realpath } from 'node:fs/promises';
import { dirname, isAbsolute, sep } from 'node:path';
import { BlockError } from '../base/block-error.ts';
import { type FileName, readFileName } from './file-name.ts';
import { isWithin, realPathOutside } from './real-path.ts';
import {
  besideUrl,
  canonicalUrl,
  directoryOfUrl,
  isBelowUrl,
  isUrl,
  parseUrl,
  schemeOf,
  withoutPassword,
} from './remote-url.ts';

/** The longest protocol name that QEMU's rule recognises before a colon. */
const PROTOCOL_NAME = /^([a-z][a-z0-9+.-]*):/i;

export class OpenGate {
  readonly #directories: readonly string[];
  readonly #urls: readonly string[];
  readonly #excluded: string | null;

  /**
   * `places`: real, absolute paths (no symlinks in them; see `openGate`), and URLs. `excluded`: the real path of our own
   * mountpoint, which is never touched; null for none.
   */
  constructor(places: readonly string[], excluded: string | null = null) {
    this.#directories = places.filter((place) => !isUrl(place));
    this.#urls = places.filter(isUrl);
    this.#excluded = excluded;
  }

  /**
   * The real path, or the canonical URL, of `filename` as named by the image `referrer`. Errors: EACCES outside the
   * allowed places and for other protocol names, ENOENT when it does not exist; those of `readFileName`.
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
    if (leadsToServer({ name, isPath }, referrer)) return this.#resolveUrl(name, isPath, referrer);
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

  // A password in a header would stand in messages, and be whoever's who made the image.
  #resolveUrl(name: string, isPath: boolean, referrer: string): string {
    const shown = withoutPassword(name);
    const refuse = (why: string, hint?: string): BlockError =>
      this.#refused(`names '${shown}', ${why}`, referrer, hint);
    const isWhole = !isPath && isUrl(name);
    if (!isWhole && !/^https?$/.test(schemeOf(referrer) ?? '')) {
      throw refuse('and there is nothing beside an export of an NBD server');
    }
    const url = isWhole ? name : besideUrl(name, referrer);
    const { username, password } = parseUrl(url);
    if (username !== '' || password !== '') {
      throw refuse('with a user or password', 'give them in the URL of --backing-dir');
    }
    const canonical = canonicalUrl(url);
    if (this.#urls.some((prefix) => isBelowUrl(canonical, prefix))) return canonical;
    const place = /^https?:/.test(canonical) ? directoryOfUrl(canonical) : canonical;
    throw refuse('which is below no allowed URL', `allow it with --backing-dir ${place}`);
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

/** A URL, or a relative name in an image that was itself opened by a URL. */
const leadsToServer = ({ name, isPath }: Pick<FileName, 'name' | 'isPath'>, referrer: string) => {
  if (!isPath && isUrl(name)) return true;
  return isUrl(referrer) && !isAbsolute(name) && (isPath || !PROTOCOL_NAME.test(name));
};

/**
 * A gate over the given directories, symlinks in them resolved, and URLs; `excluded` as for the constructor. Errors:
 * ENOENT and those of the host; EINVAL for a broken URL.
 */
export const openGate = async (
  places: readonly string[],
  excluded: string | null = null,
): Promise<OpenGate> =>
  new OpenGate(
    await Promise.all(places.map((p) => (isUrl(p) ? canonicalUrl(p) : realpath(p)))),
    excluded,
  );

/** Where names in an image's header may lead without further permission: beside it. None for an export of an NBD server. */
export const placesBeside = (path: string): readonly string[] => {
  if (!isUrl(path)) return [dirname(path)];
  return /^https?$/.test(schemeOf(path) ?? '') ? [directoryOfUrl(path)] : [];
};
