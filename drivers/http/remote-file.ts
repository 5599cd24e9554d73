/**
 * A file on a web server, for reading. Owns its connections, what is known of the file's version, and where the last
 * redirection led.
 *
 * A read asks for exactly its range, in one request; one that breaks off goes on from where it was. Reads run at the same
 * time, as many as there are connections; the others wait in order.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { Agent } from 'undici';
import { BackOff } from '../../src/base/back-off.ts';
import { BlockError } from '../../src/base/block-error.ts';
import { Turns } from '../../src/base/turns.ts';
import type { GuestOffset } from '../../src/base/units.ts';
import type {
  DriverInstance,
  Mapping,
  OpenPathRequest,
  RemoteState,
} from '../../src/block/driver.ts';
import { canonicalUrl, withoutPassword } from '../../src/block/remote-url.ts';
import {
  type ByteSpan,
  checkPartial,
  type Headers,
  headerOf,
  type Version,
  versionOf,
  versionText,
} from './answer.ts';
import { Authorization } from './authorization.ts';
import { exchange } from './exchange.ts';
import { brokenAnswer, finalFailure, type TryFailed, toTryFailed } from './failure.ts';
import { type HttpLimits, MAX_REDIRECTS } from './limits.ts';

type Head = (status: number, headers: Headers) => number | null;

/** See `ExchangeRequest`. */
interface PartialRead {
  readonly span: ByteSpan;
  readonly target: Uint8Array;
  readonly head: Head;
  /** By `performance.now()`. */
  readonly endMs: number;
  readonly arrived: (lengthBytes: number) => void;
}

export class RemoteFile implements DriverInstance {
  readonly clusterBytes = 1;
  readonly backingLink = null;
  readonly remote: RemoteState;
  readonly #request: OpenPathRequest;
  readonly #limits: HttpLimits;
  readonly #source: URL;
  readonly #shown: string;
  readonly #authorization: Authorization;
  readonly #agent: Agent;
  readonly #turns: Turns;
  /** Where the file was found last; the source, or where that one redirected to. */
  #target: URL;
  #version: Version = { etag: null, lastModified: null, lengthBytes: 0 };
  #stale: BlockError | null = null;

  /** Use `openRemoteFile`. */
  constructor(request: OpenPathRequest, source: URL, limits: HttpLimits) {
    this.#request = request;
    this.#limits = limits;
    this.#source = source;
    this.#target = source;
    this.#shown = withoutPassword(request.path);
    this.#authorization = new Authorization(source, request.credentials ?? []);
    this.#turns = new Turns(limits.connections);
    this.#agent = new Agent({
      connections: limits.connections,
      pipelining: 1,
      connect: { timeout: limits.answerMs },
      // The driver has its own: see exchange.ts.
      headersTimeout: 0,
      bodyTimeout: 0,
    });
    const file = this;
    this.remote = {
      isWritable: false,
      get version() {
        return versionText(file.#version);
      },
      get isStale() {
        return file.#stale !== null;
      },
    };
  }

  get lengthBytes(): number {
    return this.#version.lengthBytes;
  }

  mapping(_offset: GuestOffset, lengthBytes: number): Mapping {
    return { kind: 'opaque', lengthBytes };
  }

  /** Asks the server for the file's length and version. Errors: EACCES, ENOENT, EOPNOTSUPP (no ranges), EIO. */
  async learn(): Promise<void> {
    const head: Head = (status, headers) => {
      this.#version = versionOf(status, headers);
      return status === 206 ? 1 : null;
    };
    const target = new Uint8Array(1);
    const span = { first: 0, last: 0 };
    await this.#persist('open', this.#limits.openDeadlineMs, (endMs) =>
      this.#follow({ span, target, head, endMs, arrived: () => undefined }),
    );
    if (versionText(this.#version) !== null) return;
    const text = 'the server sends neither ETag nor Last-Modified: a change of the file may go';
    this.#request.log.warning(this.#shown, `${text} unnoticed while its length stays the same`);
  }

  async read(offset: GuestOffset, buffer: Uint8Array): Promise<void> {
    using _turn = await this.#turns.take();
    let done = 0;
    const arrived = (lengthBytes: number): void => {
      done += lengthBytes;
    };
    await this.#persist('read', this.#limits.deadlineMs, async (endMs) => {
      // A server may give less than was asked.
      while (done < buffer.length) {
        const span = { first: offset + done, last: offset + buffer.length - 1 };
        const head: Head = (status, headers) => checkPartial(status, headers, span, this.#version);
        await this.#follow({ span, target: buffer.subarray(done), head, endMs, arrived });
      }
    });
  }

  async flush(): Promise<void> {
    // Nothing is written.
  }

  async allocatedBytes(): Promise<number> {
    return this.lengthBytes;
  }

  async close(): Promise<void> {
    await this.#agent.destroy();
  }

  /** Tries until it succeeds, another try would be no better, or the time is over. */
  async #persist(
    op: 'open' | 'read',
    deadlineMs: number,
    attempt: (endMs: number) => Promise<void>,
  ): Promise<void> {
    const { firstPauseMs, lastPauseMs } = this.#limits;
    const backOff = new BackOff({ firstMs: firstPauseMs, lastMs: lastPauseMs });
    const endMs = performance.now() + deadlineMs;
    let brokenTries = 0;
    let refusals = 0;
    for (;;) {
      if (this.#stale !== null) throw this.#stale;
      try {
        await attempt(endMs);
        return;
      } catch (thrown) {
        const failed = toTryFailed(thrown);
        const pauseMs = Math.max(backOff.next(), failed.pauseMs);
        if (failed.kind === 'broken') brokenTries++;
        if (failed.kind === 'refused') refusals++;
        // A redirection may have led to a place that is no more, and a token may have been renewed.
        const movedAway = this.#target !== this.#source;
        this.#target = this.#source;
        if (failed.kind === 'refused') this.#authorization.forgetTokens();
        const goesOn =
          failed.kind === 'network'
            ? op === 'read' || !isUnreachable(failed)
            : failed.kind === 'broken'
              ? brokenTries < this.#limits.brokenTries && (op === 'read' || movedAway)
              : failed.kind === 'refused' && refusals < 2;
        if (!goesOn || performance.now() + pauseMs >= endMs) throw this.#given(failed, op);
        this.#request.log.debug(this.#shown, `${op} is tried again: ${failed.message}`);
        await sleep(pauseMs);
      }
    }
  }

  /** What the caller is told; a change of the file is remembered. */
  #given(failed: TryFailed, op: 'open' | 'read'): BlockError {
    const { failure, kind } = failed;
    // While it is open, what is not there has been taken away: no errno of a name that is looked up.
    const errno = op === 'read' && kind !== 'final' ? 'EIO' : failure.errno;
    const error = new BlockError({
      kind: errno === 'EIO' ? 'io' : failure.kind,
      errno,
      message: failure.message,
      hint: failure.hint,
      path: failure.path ?? this.#shown,
      op,
      cause: failure.cause,
    });
    if (errno === 'ESTALE' && op === 'read') {
      if (this.#stale === null) this.#request.log.error(this.#shown, failure.message);
      this.#stale = error;
    }
    return error;
  }

  /** One exchange, after as many redirections as there are. */
  async #follow(read: PartialRead): Promise<void> {
    const { span, target, arrived, endMs } = read;
    let url = this.#target;
    for (let hops = 0; hops <= MAX_REDIRECTS; hops++) {
      let next: URL | null = null;
      await exchange({
        agent: this.#agent,
        url,
        authorization: await this.#authorization.headerFor(url),
        span,
        limits: this.#limits,
        leftMs: endMs - performance.now(),
        target,
        arrived,
        head: (status, headers) => {
          if (status === 304 || status < 300 || status > 399) {
            this.#target = url;
            return read.head(status, headers);
          }
          next = redirection(url, headers);
          return null;
        },
      });
      if (next === null) return;
      url = next;
    }
    throw brokenAnswer(`the server redirects more than ${MAX_REDIRECTS} times`);
  }
}

const redirection = (from: URL, headers: Headers): URL => {
  const location = headerOf(headers, 'location');
  if (location === null || !URL.canParse(location, from.href)) {
    throw brokenAnswer('the server redirects to no valid address');
  }
  const to = new URL(location, from.href);
  const isWeb = to.protocol === 'http:' || to.protocol === 'https:';
  if (!isWeb || (from.protocol === 'https:' && to.protocol !== 'https:')) {
    const message = `the server redirects from ${from.protocol} to ${to.protocol}`;
    throw finalFailure(new BlockError({ kind: 'not-permitted', message }));
  }
  return new URL(canonicalUrl(to.href));
};

/** Nobody is there at all: at an opening that is an answer. */
const isUnreachable = ({ failure }: TryFailed): boolean => {
  const code = (failure.cause as { code?: unknown } | null)?.code;
  return code === 'ECONNREFUSED' || code === 'ENOTFOUND' || code === 'EAI_AGAIN';
};
