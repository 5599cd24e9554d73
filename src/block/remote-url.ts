/**
 * URLs as names of images: what is one, its canonical form (which is the identity of a remote node), and prefixes of
 * what may be opened. Names from image headers come here: nothing of them is trusted.
 */
import { BlockError } from '../base/block-error.ts';

const SCHEME = /^(?<scheme>[a-z][a-z0-9+.-]*):\/\//i;

/** `http` of `http://…`, in lower case; null for a path of the host. */
export const schemeOf = (path: string): string | null =>
  SCHEME.exec(path)?.groups?.['scheme']?.toLowerCase() ?? null;

export const isUrl = (path: string): boolean => schemeOf(path) !== null;

/** Ports that need not be written, of the schemes that a URL parser does not know. */
const DEFAULT_PORTS: Readonly<Record<string, string>> = { 'nbd:': '10809' };

/** Errors: EINVAL for what is no URL. */
export const parseUrl = (text: string): URL => {
  try {
    return new URL(text);
  } catch {
    const message = 'is not a URL';
    throw new BlockError({ kind: 'bad-request', message, path: withoutPassword(text), op: 'open' });
  }
};

/**
 * The one spelling of a URL, without user, password and fragment: two URLs with the same one are the same image. Errors: EINVAL.
 */
export const canonicalUrl = (text: string): string => {
  const url = parseUrl(text);
  const host = url.hostname.toLowerCase();
  const isDefault = url.port === '' || url.port === DEFAULT_PORTS[url.protocol];
  const port = isDefault ? '' : `:${url.port}`;
  return `${url.protocol}//${host}${port}${url.pathname}${url.search}`;
};

/** For messages: a URL whose user and password are left out, also one that is no valid URL. */
export const withoutPassword = (text: string): string =>
  text.replace(/^(?<scheme>[a-z][a-z0-9+.-]*:\/\/)[^/?#]*@/i, '$<scheme>');

/** The last part of a URL's path that is not empty, decoded; the host's name where there is none. */
export const fileNameOfUrl = (text: string): string => {
  const url = parseUrl(text);
  const part = url.pathname.split('/').findLast((p) => p !== '');
  return part === undefined ? url.hostname || 'disk' : decoded(part);
};

/** The URL without what comes after the last `/` of its path, and without a query: the directory of a file. */
export const directoryOfUrl = (text: string): string => {
  const url = parseUrl(canonicalUrl(text));
  url.pathname = url.pathname.slice(0, url.pathname.lastIndexOf('/') + 1);
  url.search = '';
  return url.href;
};

/**
 * Whether a URL lies at or below a prefix: same scheme, host and port, and the prefix's path is the URL's or ends at a
 * `/` of it. A query has to be the prefix's own. Paths that step out (`..`, however it is written) are below nothing.
 */
export const isBelowUrl = (text: string, prefix: string): boolean => {
  const [url, above] = [parseUrl(canonicalUrl(text)), parseUrl(canonicalUrl(prefix))];
  if (url.protocol !== above.protocol || url.host !== above.host) return false;
  if (url.search !== above.search || stepsOut(url.pathname)) return false;
  if (url.pathname === above.pathname) return true;
  const directory = above.pathname.endsWith('/') ? above.pathname : `${above.pathname}/`;
  return url.pathname.startsWith(directory);
};

/** A URL parser folds `..` and `%2e%2e`; what a server may unfold itself is left. */
const stepsOut = (pathname: string): boolean => {
  let path = pathname;
  // Decoded twice by a proxy and a server behind it is decoded once too often, not for ever.
  for (let round = 0; round < 3; round++) path = decoded(path);
  return /(?:^|[/\\])\.\.(?:[/\\]|$)/.test(path);
};

const decoded = (text: string): string => {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
};

/**
 * A relative name that the image at `referrer` has in its header, as a URL beside it. The name is a file's, not a
 * URL's: `a#b?c` is one.
 */
export const besideUrl = (name: string, referrer: string): string => {
  const path = name.split('/').map(encodeURIComponent).join('/');
  return canonicalUrl(directoryOfUrl(referrer) + path);
};
