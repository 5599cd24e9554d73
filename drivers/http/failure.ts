/** Why one try of a request failed, and whether another may do better. */
import { BlockError, toBlockError } from '../../src/base/block-error.ts';

/**
 * `network`: the server or the way to it is disturbed (reset, time-out, 5xx): tried again until the deadline.
 * `broken`: the answer makes no sense: tried a few times. `refused`: 401 or 403. `final`: no try will do better.
 */
export type FailureKind = 'network' | 'broken' | 'refused' | 'final';

export class TryFailed extends Error {
  override readonly name = 'TryFailed';
  readonly kind: FailureKind;
  readonly failure: BlockError;
  /** The server asked not to be bothered for so long (Retry-After), else 0. */
  readonly pauseMs: number;

  constructor(kind: FailureKind, failure: BlockError, pauseMs = 0) {
    super(failure.message, { cause: failure });
    this.kind = kind;
    this.failure = failure;
    this.pauseMs = pauseMs;
  }
}

/** An answer that breaks the protocol; the message says how. */
export const brokenAnswer = (message: string): TryFailed =>
  new TryFailed('broken', new BlockError({ kind: 'io', message }));

export const networkFailure = (message: string, pauseMs = 0): TryFailed =>
  new TryFailed('network', new BlockError({ kind: 'io', message }), pauseMs);

export const finalFailure = (failure: BlockError): TryFailed => new TryFailed('final', failure);

/** The file is another one than that which was opened. */
export const changedFailure = (message: string): TryFailed =>
  finalFailure(
    new BlockError({
      kind: 'io',
      errno: 'ESTALE',
      message: `the file has changed on the server: ${message}`,
    }),
  );

/** Certificates that are not trusted: no server that is worth waiting for. */
const CERTIFICATE = /^(?:ERR_TLS_|CERT_|DEPTH_ZERO_|SELF_SIGNED_|UNABLE_TO_|HOSTNAME_MISMATCH)/;

/** What undici's parser found to be no HTTP, and TLS where there is none. */
const NONSENSE = /^(?:HTTPParserError|UND_ERR_HEADERS_OVERFLOW|EPROTO)/;

/** Anything that a try has thrown. */
export const toTryFailed = (thrown: unknown): TryFailed => {
  if (thrown instanceof TryFailed) return thrown;
  if (thrown instanceof BlockError) return finalFailure(thrown);
  const code = String((thrown as { code?: unknown } | null)?.code ?? '');
  const message = thrown instanceof Error ? thrown.message : String(thrown);
  if (CERTIFICATE.test(code)) {
    const hint = 'a certificate authority of your own goes into NODE_EXTRA_CA_CERTS';
    const text = `the server's certificate is not trusted: ${message}`;
    return finalFailure(
      new BlockError({ kind: 'not-permitted', message: text, hint, cause: thrown }),
    );
  }
  const name = thrown instanceof Error ? thrown.name : '';
  if (NONSENSE.test(code) || NONSENSE.test(name))
    return brokenAnswer(`the answer is no HTTP: ${message}`);
  // A system error's own errno says more than EIO, but is none of a disk's: it stays in the message.
  const { message: text } = toBlockError(thrown);
  return new TryFailed(
    'network',
    new BlockError({
      kind: 'io',
      message: text === '' ? `the connection failed (${code})` : text,
      cause: thrown,
    }),
  );
};
