/**
 * One request and its answer. The body goes to the reader's buffer as it comes, so that nothing is kept beside it; a
 * connection whose answer is not taken to its end is closed.
 */
import type { Agent } from 'undici';
import type { ByteSpan, Headers } from './answer.ts';
import { brokenAnswer, networkFailure } from './failure.ts';
import type { HttpLimits } from './limits.ts';

export interface ExchangeRequest {
  readonly agent: Agent;
  readonly url: URL;
  readonly authorization: string | null;
  readonly span: ByteSpan;
  readonly limits: HttpLimits;
  /** Milliseconds that are left for the request as a whole. */
  readonly leftMs: number;
  /**
   * Called with the answer's header; returns how many bytes the body has to have, or null to leave the body. What it
   * throws ends the exchange.
   */
  readonly head: (status: number, headers: Headers) => number | null;
  /** Where the body goes; as long as what `span` asks. */
  readonly target: Uint8Array;
  /** Called for each piece that has come. */
  readonly arrived: (lengthBytes: number) => void;
}

/** Errors: TryFailed, and those of undici and the network. When it returns or throws, nothing writes to `target` any more. */
export const exchange = async (request: ExchangeRequest): Promise<void> => {
  const { agent, url, span, authorization, limits } = request;
  const watch = new ProgressWatch(limits, request.leftMs);
  try {
    const answer = await agent.request({
      origin: url.origin,
      path: url.pathname + url.search,
      method: 'GET',
      headers: {
        range: `bytes=${span.first}-${span.last}`,
        // A packed body has other offsets than the file.
        'accept-encoding': 'identity',
        'user-agent': 'vdiskfs',
        ...(authorization === null ? {} : { authorization }),
      },
      signal: watch.signal,
    });
    // Destroyed with an error, it would throw where nobody listens.
    answer.body.on('error', () => undefined);
    let expected: number | null;
    try {
      expected = request.head(answer.statusCode, answer.headers);
    } catch (error) {
      answer.body.destroy();
      throw error;
    }
    if (expected === null) {
      answer.body.destroy();
      return;
    }
    watch.bodyBegins();
    await take(answer.body, expected, request, watch);
  } catch (error) {
    throw watch.reason ?? error;
  } finally {
    watch.end();
  }
};

const take = async (
  body: AsyncIterable<Uint8Array>,
  expected: number,
  request: ExchangeRequest,
  watch: ProgressWatch,
): Promise<void> => {
  let done = 0;
  for await (const piece of body) {
    if (piece.length > expected - done) {
      throw brokenAnswer(`the body is longer than the ${expected} bytes that it should have`);
    }
    request.target.set(piece, done);
    done += piece.length;
    watch.arrived(piece.length);
    request.arrived(piece.length);
  }
  if (done < expected) throw networkFailure(`the body ends after ${done} of ${expected} bytes`);
};

/** Ends a try that does not get on: no header in time, too few bytes in a stretch of time, or the request's end. */
class ProgressWatch {
  readonly #controller = new AbortController();
  readonly #limits: HttpLimits;
  readonly #overall: NodeJS.Timeout;
  #step: NodeJS.Timeout;
  #gotBytes = 0;

  constructor(limits: HttpLimits, leftMs: number) {
    this.#limits = limits;
    this.#overall = setTimeout(
      () => this.#abort('the time for this request is over'),
      Math.max(0, leftMs),
    );
    this.#step = setTimeout(
      () => this.#abort(`no answer within ${limits.answerMs} ms`),
      limits.answerMs,
    );
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** Why the try was ended from here; null when it was not. */
  get reason(): unknown {
    return this.signal.aborted ? this.signal.reason : null;
  }

  bodyBegins(): void {
    const { progressMs, progressBytes } = this.#limits;
    clearTimeout(this.#step);
    this.#step = setInterval(() => {
      if (this.#gotBytes < progressBytes) {
        this.#abort(`only ${this.#gotBytes} bytes came within ${progressMs} ms`);
      }
      this.#gotBytes = 0;
    }, progressMs);
  }

  arrived(lengthBytes: number): void {
    this.#gotBytes += lengthBytes;
  }

  end(): void {
    clearTimeout(this.#overall);
    clearTimeout(this.#step);
  }

  #abort(message: string): void {
    this.#controller.abort(networkFailure(message));
  }
}
