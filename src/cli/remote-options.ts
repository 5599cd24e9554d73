/** What the commands that open images share about servers: bearer tokens, and URLs among the allowed places. */
import { existsSync } from 'node:fs';
import { resolve } from 'node:path';
import type { Argv } from 'yargs';
import { BlockError } from '../base/block-error.ts';
import { type RemoteCredential, splitCredential } from '../block/remote-access.ts';
import { canonicalUrl, isUrl } from '../block/remote-url.ts';

/** Names a token file where `--http-token-file` does not. */
const TOKEN_VARIABLE = 'VDISKFS_HTTP_TOKEN_FILE';

/** `--http-token-file`. */
export const declareRemote = <T>(yargs: Argv<T>) =>
  yargs.option('http-token-file', {
    type: 'string',
    array: true,
    default: [] as string[],
    requiresArg: true,
    defaultDescription: `$${TOKEN_VARIABLE}`,
    describe: 'File with a bearer token for web servers; URL=FILE: for what begins with URL alone',
  });

/** `[URL=]FILE` each. Errors: ENOENT for a file that is not there; EINVAL for a broken URL. */
export const tokenFiles = (given: readonly string[]): readonly RemoteCredential[] => {
  const fromEnvironment = process.env[TOKEN_VARIABLE];
  const texts = given.length > 0 || !fromEnvironment ? given : [fromEnvironment];
  return texts.map((text) => {
    const named = /^(?<url>https?:\/\/[^=]*)=(?<file>.+)$/i.exec(text)?.groups;
    const path = resolve(named?.['file'] ?? text);
    if (!existsSync(path)) {
      throw new BlockError({ kind: 'not-found', message: 'no such file', path, op: 'open' });
    }
    const prefix = named?.['url'] === undefined ? null : canonicalUrl(named['url']);
    return { prefix, secret: { kind: 'token-file', path } };
  });
};

export interface AllowedPlaces {
  /** Directories as they were given, and URLs without user and password. */
  readonly places: readonly string[];
  readonly credentials: readonly RemoteCredential[];
}

/** The values of `--backing-dir`. Errors: EINVAL for a broken URL. */
export const allowedPlaces = (given: readonly string[]): AllowedPlaces => {
  const split = given.map((text) =>
    isUrl(text) ? splitCredential(text) : { url: text, credential: null },
  );
  return {
    places: split.map(({ url }) => url),
    credentials: split.flatMap(({ credential }) => (credential === null ? [] : [credential])),
  };
};
