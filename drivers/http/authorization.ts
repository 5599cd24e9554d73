/** The Authorization header of a request: user and password, or a bearer token from a file. */
import { open } from 'node:fs/promises';
import { BlockError, toBlockError } from '../../src/base/block-error.ts';
import { credentialFor, type RemoteCredential } from '../../src/block/remote-access.ts';

const MAX_TOKEN_BYTES = 64 << 10;
/** RFC 6750, section 2.1. Nothing else may get into a header. */
const TOKEN = /^[A-Za-z0-9\-._~+/]+=*$/;
const LOOPBACK = /^(?:localhost|127(?:\.\d{1,3}){3}|\[::1\])$/;

export class Authorization {
  readonly #credentials: readonly RemoteCredential[];
  readonly #origin: string;
  readonly #tokens = new Map<string, string>();

  /** `source`: the URL that was asked to be opened. */
  constructor(source: URL, credentials: readonly RemoteCredential[]) {
    this.#origin = source.origin;
    this.#credentials = credentials;
  }

  /**
   * What to send to this URL, null for nothing. Another host than the one asked gets only what was given for it by name.
   * Errors: EACCES for a token that would go through the open; ENOENT and those of the host.
   */
  async headerFor(url: URL): Promise<string | null> {
    const anywhere = url.origin === this.#origin;
    const credential = credentialFor(url.href, this.#credentials, { anywhere });
    if (credential === null) return null;
    const { secret, prefix } = credential;
    if (secret.kind === 'basic') {
      const pair = Buffer.from(`${secret.user}:${secret.password}`, 'utf8');
      return `Basic ${pair.toString('base64')}`;
    }
    if (prefix === null && url.protocol === 'http:' && !LOOPBACK.test(url.hostname)) {
      throw new BlockError({
        kind: 'not-permitted',
        message: 'a token for every server is not sent without TLS',
        hint: 'say which one it is for: --http-token-file URL=FILE',
      });
    }
    const known = this.#tokens.get(secret.path);
    const token = known ?? (await readToken(secret.path));
    this.#tokens.set(secret.path, token);
    return `Bearer ${token}`;
  }

  /** Tokens are read from their files again. */
  forgetTokens(): void {
    this.#tokens.clear();
  }
}

const readToken = async (path: string): Promise<string> => {
  const handle = await open(path, 'r').catch((error: unknown) => {
    throw toBlockError(error, { op: 'open', path });
  });
  try {
    const buffer = Buffer.alloc(MAX_TOKEN_BYTES);
    const { bytesRead } = await handle.read(buffer, 0, buffer.length, 0);
    const token = buffer.toString('latin1', 0, bytesRead).trim();
    if (bytesRead < buffer.length && TOKEN.test(token)) return token;
    const message = 'is not a file with one bearer token in it';
    throw new BlockError({ kind: 'bad-request', message, path, op: 'open' });
  } finally {
    await handle.close();
  }
};
