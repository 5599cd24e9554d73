/**
 * One connection in the transmission phase: sends requests as they come, and gives each reply to the request that its
 * cookie names. What breaks the protocol ends the connection; so does a server that says nothing, or next to nothing.
 */
import { connect, type Socket } from 'node:net';
import { assert } from '../../src/base/assert.ts';
import { BlockError } from '../../src/base/block-error.ts';
import type { NbdAddress } from './address.ts';
import { ByteSource } from './byte-source.ts';
import type { NbdLimits } from './limits.ts';
import { type ExportInfo, negotiate } from './negotiation.ts';
import { COMMAND, ConnectionLost, encodeRequest } from './protocol.ts';
import { ReplyReader } from './reply-reader.ts';
import type { Extent, NbdRequest, Pending } from './request.ts';

/** How long a server is given to close its end. */
const GOODBYE_MS = 1000;

const LONG: ReadonlySet<number> = new Set([COMMAND.flush, COMMAND.writeZeroes, COMMAND.trim]);

export class Connection {
  readonly info: ExportInfo;
  readonly #socket: Socket;
  readonly #source: ByteSource;
  readonly #limits: NbdLimits;
  readonly #pending = new Map<number, Pending>();
  readonly #watch: NodeJS.Timeout;
  #nextCookie = 1;
  #reason: ConnectionLost | null = null;
  /** At the last look of the watch. */
  #seenBytes: number;
  /** Looks in a row that have found next to nothing; at the first one a reply may just have begun. */
  #slowLooks = 0;
  #ended = 0;
  #lastByteMs = performance.now();
  /** Resolves with the reason when the connection has ended, and nothing writes to a target any more. */
  readonly ended: Promise<ConnectionLost>;

  /** Use `openConnection`. */
  constructor(socket: Socket, source: ByteSource, info: ExportInfo, limits: NbdLimits) {
    this.#socket = socket;
    this.#source = source;
    this.#seenBytes = source.receivedBytes;
    this.info = info;
    this.#limits = limits;
    this.#watch = setInterval(() => this.#look(), limits.progressMs).unref();
    this.ended = this.#receive();
  }

  get inFlight(): number {
    return this.#pending.size;
  }

  get isOpen(): boolean {
    return this.#reason === null && !this.#socket.destroyed;
  }

  /** Extents of a block status, else none. Errors: ConnectionLost; what the server answers, as BlockError. */
  send(request: NbdRequest): Promise<readonly Extent[]> {
    const { command, flags, offset, lengthBytes, payload } = request;
    const cookie = this.#nextCookie++;
    assert(payload === null || payload.length === lengthBytes, 'a payload is as long as its range');
    return new Promise((resolve, reject) => {
      if (!this.isOpen) {
        reject(this.#reason ?? new ConnectionLost('the connection is closed'));
        return;
      }
      if (this.#pending.size === 0) this.#lastByteMs = performance.now();
      const settle = (outcome: readonly Extent[] | Error): void =>
        outcome instanceof Error ? reject(outcome) : resolve(outcome);
      this.#pending.set(cookie, { request, settle });
      this.#socket.cork();
      this.#socket.write(encodeRequest({ command, flags, cookie, offset, lengthBytes }));
      if (payload !== null) this.#socket.write(payload);
      this.#socket.uncork();
    });
  }

  /** Says goodbye and closes. Nothing may be in flight. */
  async close(): Promise<void> {
    const bye = { command: COMMAND.disconnect, flags: 0, cookie: 0, offset: 0, lengthBytes: 0 };
    if (this.isOpen) this.#socket.end(encodeRequest(bye));
    this.#reason ??= new ConnectionLost('closed');
    const patience = setTimeout(() => this.#socket.destroy(), GOODBYE_MS);
    await this.ended;
    clearTimeout(patience);
  }

  /** Resets the connection, so that the server throws away what it has not read yet. */
  abandon(why: string): void {
    this.#reason ??= new ConnectionLost(why);
    if (this.#socket.destroyed) return;
    if (this.#socket.remoteAddress === undefined) this.#socket.destroy();
    else this.#socket.resetAndDestroy();
  }

  async #receive(): Promise<ConnectionLost> {
    const reader = new ReplyReader(this.#source, this.info, this.#pending, () => this.#ended++);
    let reason: ConnectionLost;
    try {
      for (;;) await reader.next();
    } catch (error) {
      if (!(error instanceof ConnectionLost)) throw error;
      reason = this.#reason ?? error;
    } finally {
      clearInterval(this.#watch);
    }
    if (this.#reason === null) this.abandon(reason.message);
    else this.#socket.destroy();
    for (const { settle } of this.#pending.values()) settle(reason);
    this.#pending.clear();
    return reason;
  }

  #look(): void {
    const { silenceMs, longSilenceMs, progressBytes, progressMs } = this.#limits;
    const bytes = this.#source.receivedBytes - this.#seenBytes;
    const ended = this.#ended;
    this.#seenBytes = this.#source.receivedBytes;
    this.#ended = 0;
    const now = performance.now();
    if (bytes > 0) this.#lastByteMs = now;
    const isSlow = this.#pending.size > 0 && bytes > 0 && ended === 0 && bytes < progressBytes;
    this.#slowLooks = isSlow ? this.#slowLooks + 1 : 0;
    if (this.#pending.size === 0) return;
    if (this.#slowLooks > 1) {
      this.abandon(`only ${bytes} bytes came within ${progressMs} ms`);
      return;
    }
    const isLong = [...this.#pending.values()].some((p) => LONG.has(p.request.command));
    const silence = now - this.#lastByteMs;
    if (silence < (isLong ? longSilenceMs : silenceMs)) return;
    this.abandon(`the server has not answered for ${Math.round(silence / 1000)} s`);
  }
}

/** Connects and negotiates. Errors: EIO, and those of `negotiate` as BlockError. */
export const openConnection = async (
  address: NbdAddress,
  limits: NbdLimits,
): Promise<Connection> => {
  const socket = connect({ ...address.server, noDelay: true, keepAlive: true });
  const source = new ByteSource(socket);
  const timer = setTimeout(
    () => socket.destroy(new Error(`no answer within ${limits.handshakeMs} ms`)),
    limits.handshakeMs,
  );
  try {
    const info = await negotiate(socket, source, address.exportName);
    return new Connection(socket, source, info, limits);
  } catch (error) {
    socket.destroy();
    if (!(error instanceof ConnectionLost)) throw error;
    throw new BlockError({ kind: 'io', message: error.message, cause: error });
  } finally {
    clearTimeout(timer);
  }
};
