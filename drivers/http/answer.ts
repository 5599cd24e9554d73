/**
 * What the header of an answer to a range request says, checked before a byte of its body is taken: RFC 9110, sections
 * 14 (ranges), 8.8 (validators), 15 (status codes). Pure.
 */
import { BlockError } from '../../src/base/block-error.ts';
import {
  brokenAnswer,
  changedFailure,
  finalFailure,
  networkFailure,
  TryFailed,
} from './failure.ts';

/** Of an answer, as undici gives it: lower case, several of one name in an array. */
export type Headers = Readonly<Record<string, string | string[] | undefined>>;

/** What tells one content of a URL from another. */
export interface Version {
  readonly etag: string | null;
  readonly lastModified: string | null;
  readonly lengthBytes: number;
}

/** Bytes `first` to `last`, both included, as HTTP counts. */
export interface ByteSpan {
  readonly first: number;
  readonly last: number;
}

const MAX_PAUSE_MS = 30_000;
const DIGITS = /^\d{1,16}$/;
const CONTENT_RANGE = /^bytes (?:(?<first>\d{1,16})-(?<last>\d{1,16})|\*)\/(?<total>\d{1,16}|\*)$/i;

/** One value; null for none. Several are joined, as HTTP has it. */
export const headerOf = (headers: Headers, name: string): string | null => {
  const value = headers[name];
  if (value === undefined) return null;
  return Array.isArray(value) ? value.join(', ') : value;
};

/**
 * Bytes that the body of this answer holds, from `asked.first` on: at least 1, at most what was asked. Throws TryFailed for
 * anything that is no answer to the question, or an answer about another content than `known`.
 */
export const checkPartial = (
  status: number,
  headers: Headers,
  asked: ByteSpan,
  known: Version,
): number => {
  if (status === 416) throw changedFailure(`it ends before byte ${asked.first} now`);
  checkStatus(status, headers);
  const span = rangeOf(headers);
  if (span.totalBytes !== known.lengthBytes) {
    throw changedFailure(`its length is ${span.totalBytes} bytes, it was ${known.lengthBytes}`);
  }
  checkVersion(headers, known);
  if (span.first !== asked.first || span.last > asked.last) {
    const got = `${span.first}-${span.last}`;
    throw brokenAnswer(
      `the server answers bytes ${got} where ${asked.first}-${asked.last} were asked`,
    );
  }
  const lengthBytes = span.last - span.first + 1;
  checkBody(headers, lengthBytes);
  return lengthBytes;
};

/**
 * What the first answer, to a request for byte 0 alone, says of the file; its body is that byte unless the file is empty.
 * Throws TryFailed.
 */
export const versionOf = (status: number, headers: Headers): Version => {
  const isEmptyWhole = status === 200 && headerOf(headers, 'content-length') === '0';
  const isEmptyRange =
    status === 416 && /^bytes \*\/0$/i.test(headerOf(headers, 'content-range') ?? '');
  const etag = headerOf(headers, 'etag');
  const lastModified = headerOf(headers, 'last-modified');
  if (isEmptyWhole || isEmptyRange) return { etag, lastModified, lengthBytes: 0 };
  checkStatus(status, headers);
  const span = rangeOf(headers);
  if (span.first !== 0 || span.last !== 0) {
    throw brokenAnswer(`the server answers bytes ${span.first}-${span.last} where 0-0 were asked`);
  }
  checkBody(headers, 1);
  return { etag, lastModified, lengthBytes: span.totalBytes };
};

/** A text that differs when the content does; null when the server gives nothing that tells. */
export const versionText = (v: Version): string | null =>
  v.etag === null && v.lastModified === null
    ? null
    : `${v.etag ?? ''} ${v.lastModified ?? ''} ${v.lengthBytes}`;

const checkStatus = (status: number, headers: Headers): void => {
  if (status === 206) return;
  if (status === 200) {
    const message = 'the server sends the whole file where a part was asked: it has no ranges';
    const hint = 'download the file, or serve it with a server that answers range requests';
    throw finalFailure(new BlockError({ kind: 'unsupported', message, hint }));
  }
  if (status === 401 || status === 403 || status === 407) {
    const message = `the server refuses it (HTTP ${status})`;
    const hint = 'give user and password in the URL, or a token with --http-token-file';
    throw new TryFailed('refused', new BlockError({ kind: 'not-permitted', message, hint }));
  }
  if (status === 404 || status === 410) {
    const message = `the server does not have it (HTTP ${status})`;
    throw new TryFailed('broken', new BlockError({ kind: 'not-found', message }));
  }
  const message = `the server answers HTTP ${status}`;
  if (status === 408 || status === 425 || status === 429) {
    throw networkFailure(message, pauseOf(headers));
  }
  if (status >= 500 && status !== 501 && status !== 505) {
    throw networkFailure(message, pauseOf(headers));
  }
  throw finalFailure(new BlockError({ kind: 'io', message }));
};

const rangeOf = (headers: Headers): ByteSpan & { readonly totalBytes: number } => {
  const text = headerOf(headers, 'content-range');
  if (text === null) throw brokenAnswer('the answer has no Content-Range (or several parts)');
  const groups = CONTENT_RANGE.exec(text)?.groups;
  const [first, last, total] = [groups?.['first'], groups?.['last'], groups?.['total']].map(Number);
  if (groups?.['total'] === '*') {
    const message = 'the server does not tell the length of the file';
    throw finalFailure(new BlockError({ kind: 'unsupported', message }));
  }
  const valid =
    Number.isSafeInteger(total) && first !== undefined && last !== undefined && total !== undefined;
  if (!valid || !(first <= last && last < total)) {
    throw brokenAnswer(`the answer's Content-Range '${text.slice(0, 100)}' is no valid range`);
  }
  return { first, last, totalBytes: total };
};

const checkVersion = (headers: Headers, known: Version): void => {
  const etag = headerOf(headers, 'etag');
  if (etag !== known.etag) {
    throw changedFailure(`its ETag is ${etag ?? 'gone'}, it was ${known.etag ?? 'none'}`);
  }
  // Servers behind one name may disagree about a time; about a strong ETag they do not.
  if (known.etag !== null && !known.etag.startsWith('W/')) return;
  const lastModified = headerOf(headers, 'last-modified');
  if (lastModified !== known.lastModified) {
    const was = known.lastModified ?? 'without one';
    throw changedFailure(`its Last-Modified is ${lastModified ?? 'gone'}, it was ${was}`);
  }
};

const checkBody = (headers: Headers, lengthBytes: number): void => {
  const encoding = headerOf(headers, 'content-encoding');
  if (encoding !== null && encoding.toLowerCase() !== 'identity') {
    const message = `the server sends it encoded as '${encoding.slice(0, 40)}', unasked`;
    throw finalFailure(new BlockError({ kind: 'unsupported', message }));
  }
  const length = headerOf(headers, 'content-length');
  if (length === null) return;
  if (!DIGITS.test(length) || Number(length) !== lengthBytes) {
    throw brokenAnswer(
      `the answer's Content-Length is ${length.slice(0, 40)} for ${lengthBytes} bytes`,
    );
  }
};

/** Retry-After, in seconds or as a date. */
const pauseOf = (headers: Headers): number => {
  const text = headerOf(headers, 'retry-after');
  if (text === null) return 0;
  const ms = DIGITS.test(text) ? Number(text) * 1000 : Date.parse(text) - Date.now();
  return Number.isFinite(ms) ? Math.min(Math.max(0, ms), MAX_PAUSE_MS) : 0;
};
