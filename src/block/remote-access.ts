/**
 * What proves to a server who asks. Credentials are kept apart from the URLs that they are for: a URL goes into logs,
 * messages, attributes and /proc/mounts.
 */
import { canonicalUrl, isBelowUrl, parseUrl } from './remote-url.ts';

export interface RemoteCredential {
  /** The URLs it is for, by their beginning (see `isBelowUrl`); null: whatever is opened, but no redirection elsewhere. */
  readonly prefix: string | null;
  readonly secret:
    | { readonly kind: 'basic'; readonly user: string; readonly password: string }
    /** A bearer token, alone in a file, which is read again when the server does not take it any more. */
    | { readonly kind: 'token-file'; readonly path: string };
}

/** A URL as a person gave it, taken apart. */
export interface SplitUrl {
  /** Without user and password. */
  readonly url: string;
  readonly credential: RemoteCredential | null;
}

/** Errors: EINVAL for what is no URL. */
export const splitCredential = (text: string): SplitUrl => {
  const { username, password } = parseUrl(text);
  const url = canonicalUrl(text);
  if (username === '' && password === '') return { url, credential: null };
  const secret = {
    kind: 'basic',
    user: decodeURIComponent(username),
    password: decodeURIComponent(password),
  } as const;
  return { url, credential: { prefix: url, secret } };
};

/** The one with the longest prefix that fits; `anywhere`: one without prefix will do. */
export const credentialFor = (
  url: string,
  credentials: readonly RemoteCredential[],
  { anywhere }: { readonly anywhere: boolean },
): RemoteCredential | null => {
  let best: RemoteCredential | null = null;
  for (const credential of credentials) {
    const { prefix } = credential;
    if (prefix === null ? !anywhere : !isBelowUrl(url, prefix)) continue;
    if (best === null || (prefix?.length ?? -1) > (best.prefix?.length ?? -1)) best = credential;
  }
  return best;
};
