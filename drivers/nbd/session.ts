/**
 * The way to an export that survives its connections: spreads requests over them, connects again when one is lost, and
 * sends again what was not answered.
 *
 * When may a request be sent again? Reads and block status always. A write, zeroing or trim too, with the same bytes to the
 * same place: while it is not answered nobody may rely on its range, and no later request on that range has been told to
 * begin. What was answered and not flushed is sent again first (unflushed.ts). All connections are given up together, by a
 * reset, so that a server throws away what it has not read of the old ones. What it has read and not yet done when the
 * connection breaks may still be done after what follows; no client can help that.
 */
import { BackOff } from '../../src/base/back-off.ts';
import { BlockError, toBlockError } from '../../src/base/block-error.ts';
import { endsWithin } from '../../src/base/bounded-wait.ts';
import type { Log } from '../../src/base/log.ts';
import { Turns } from '../../src/base/turns.ts';
import type { NbdAddress } from './address.ts';
import { type Connection, openConnection } from './connection.ts';
import type { NbdLimits } from './limits.ts';
import type { ExportInfo } from './negotiation.ts';
import { COMMAND, COMMAND_FLAG, ConnectionLost, EXPORT_FLAG } from './protocol.ts';
import type { Extent, NbdRequest } from './request.ts';
import { changes, Unflushed } from './unflushed.ts';

export interface SessionOptions {
  readonly address: NbdAddress;
  readonly limits: NbdLimits;
  readonly log: Log;
  /** The URL, for messages. */
  readonly name: string;
}

const FLUSH: NbdRequest = {
  command: COMMAND.flush,
  flags: 0,
  offset: 0,
  lengthBytes: 0,
  payload: null,
  target: null,
};

export class Session {
  readonly info: ExportInfo;
  readonly #options: SessionOptions;
  readonly #turns: Turns;
  readonly #unflushed = new Unflushed();
  /** Those in use; empty while there is none. */
  #connections: readonly Connection[] = [];
  #reconnecting: Promise<void> | null = null;
  /** Requests that wait for a connection. */
  #waiting = 0;
  #whyLost = '';
  /** Why nothing works any more: another export is there now, or answered writes could not be done again. */
  #broken: BlockError | null = null;
  /** The server has lost what it had answered: no later flush brings that back. */
  #flushFailure: BlockError | null = null;
  #closed = false;
  #flushing: Promise<void> | null = null;

  /** Use `openSession`. */
  constructor(options: SessionOptions, first: Connection) {
    this.#options = options;
    this.info = first.info;
    const { connections, inFlight } = options.limits;
    this.#turns = new Turns(inFlight * (this.#has(EXPORT_FLAG.multiConn) ? connections : 1));
  }

  /** Another export is there now. */
  get isStale(): boolean {
    return this.#broken?.errno === 'ESTALE';
  }

  /**
   * One request, sent as often as it takes. Extents of a block status, else none. Errors: what the server answers;
   * EIO when there is no server until the deadline; ESTALE.
   */
  async perform(request: NbdRequest): Promise<readonly Extent[]> {
    if (changes(request)) await this.#makeRoom();
    using _turn = await this.#turns.take();
    return this.#sendUntilAnswered(request);
  }

  /** Everything that was answered is on stable storage. Errors: as `perform`. */
  async flush(): Promise<void> {
    if (this.#broken !== null) throw this.#broken;
    if (this.#flushFailure !== null) throw this.#flushFailure;
    if (!this.#has(EXPORT_FLAG.flush)) return;
    const mark = this.#unflushed.mark();
    using _turn = await this.#turns.take();
    await this.#sendUntilAnswered(FLUSH, (failure) => {
      this.#flushFailure = failure;
      this.#unflushed.clear();
    });
    this.#unflushed.flushed(mark);
  }

  async close(): Promise<void> {
    this.#closed = true;
    await this.#reconnecting?.catch(() => undefined);
    const connections = this.#connections;
    this.#connections = [];
    await Promise.all(connections.map((connection) => connection.close()));
  }

  /** Takes the first connection into use, and more where the server allows them. */
  async begin(first: Connection): Promise<void> {
    await this.#use(first);
  }

  // A server without flush is asked for FUA instead, so its answers need no keeping; one without both promises nothing.
  #isKept(request: NbdRequest): boolean {
    return changes(request) && this.#has(EXPORT_FLAG.flush) && this.#flushFailure === null;
  }

  /** `refused`: told the error when it was the server that answered it. */
  async #sendUntilAnswered(
    request: NbdRequest,
    refused: (failure: BlockError) => void = () => undefined,
  ): Promise<readonly Extent[]> {
    const endMs = performance.now() + this.#options.limits.deadlineMs;
    for (;;) {
      const connection = await this.#connection(endMs);
      try {
        const extents = await connection.send(this.#asSent(request));
        if (this.#isKept(request)) this.#unflushed.add(request);
        return extents;
      } catch (error) {
        if (!(error instanceof ConnectionLost)) {
          refused(toBlockError(error));
          throw error;
        }
        this.#lost(connection, error);
      }
    }
  }

  #asSent(request: NbdRequest): NbdRequest {
    const needsFua = !this.#has(EXPORT_FLAG.flush) && this.#has(EXPORT_FLAG.fua);
    if (!needsFua || !changes(request)) return request;
    return { ...request, flags: request.flags | COMMAND_FLAG.fua };
  }

  async #makeRoom(): Promise<void> {
    if (this.#unflushed.bytes < this.#options.limits.unflushedBytes) return;
    this.#flushing ??= this.flush().finally(() => {
      this.#flushing = null;
    });
    await this.#flushing;
  }

  /** The one with the fewest requests; waits for one. Errors: EIO at the deadline, and what has broken the session. */
  async #connection(endMs: number): Promise<Connection> {
    for (;;) {
      if (this.#broken !== null) throw this.#broken;
      const [first, ...others] = this.#connections;
      if (first !== undefined) {
        return others.reduce((best, c) => (c.inFlight < best.inFlight ? c : best), first);
      }
      const leftMs = endMs - performance.now();
      if (leftMs <= 0) throw this.#unreachable();
      this.#waiting++;
      try {
        this.#reconnecting ??= this.#reconnect().finally(() => {
          this.#reconnecting = null;
        });
        await endsWithin(this.#reconnecting, leftMs);
      } finally {
        this.#waiting--;
      }
    }
  }

  #lost(connection: Connection, why: ConnectionLost): void {
    if (!this.#connections.includes(connection)) return;
    const { log, name } = this.#options;
    const lost = this.#connections;
    this.#connections = [];
    this.#whyLost = why.message;
    if (!this.#closed) log.warning(name, `the connection is lost: ${why.message}`);
    for (const each of lost) each.abandon(why.message);
  }

  /** Until there is a connection, or nobody waits for one any more. */
  async #reconnect(): Promise<void> {
    const { limits, log, name, address } = this.#options;
    const backOff = new BackOff({ firstMs: limits.firstPauseMs, lastMs: limits.lastPauseMs });
    while (this.#waiting > 0 && !this.#closed && this.#broken === null) {
      try {
        const connection = await openConnection(address, limits);
        this.#refuseOther(connection);
        await this.#replayOn(connection);
        await this.#use(connection);
        log.warning(name, 'connected again');
        return;
      } catch (error) {
        if (this.#broken !== null) return;
        this.#whyLost = toBlockError(error).message;
        log.debug(name, `no connection yet: ${this.#whyLost}`);
      }
      await pause(backOff.next());
    }
  }

  #refuseOther(connection: Connection): void {
    const { sizeBytes, flags, minBlockBytes } = connection.info;
    const was = this.info;
    if (sizeBytes === was.sizeBytes && flags === was.flags && minBlockBytes === was.minBlockBytes) {
      return;
    }
    const now = `${sizeBytes} bytes, flags 0x${flags.toString(16)}`;
    const message = `the server has another export now: ${now}; it was ${was.sizeBytes} bytes, flags 0x${was.flags.toString(16)}`;
    this.#break(new BlockError({ kind: 'io', errno: 'ESTALE', message }));
    connection.abandon(message);
    throw new ConnectionLost(message);
  }

  async #replayOn(connection: Connection): Promise<void> {
    try {
      await this.#unflushed.replay((request) => connection.send(request));
    } catch (error) {
      connection.abandon('what was not flushed could not be sent again');
      if (!(error instanceof ConnectionLost)) {
        const reason = toBlockError(error).message;
        const message = `writes that were answered could not be done again after a reconnection: ${reason}`;
        this.#break(new BlockError({ kind: 'io', message }));
      }
      throw error;
    }
  }

  #break(error: BlockError): void {
    this.#broken = error.with({ path: this.#options.name });
    this.#options.log.error(this.#options.name, error.message);
  }

  async #use(first: Connection): Promise<void> {
    const { limits, address } = this.#options;
    const more = this.#has(EXPORT_FLAG.multiConn) ? limits.connections - 1 : 0;
    // Fewer connections are slower, no reason to fail.
    const others = await Promise.allSettled(
      Array.from({ length: more }, () => openConnection(address, limits)),
    );
    const opened = others.flatMap((o) => (o.status === 'fulfilled' ? [o.value] : []));
    const alike = opened.filter(({ info }) => info.sizeBytes === this.info.sizeBytes);
    for (const other of opened) if (!alike.includes(other)) other.abandon('another export');
    const connections = [first, ...alike];
    this.#connections = connections;
    for (const connection of connections) {
      void connection.ended.then((why) => this.#lost(connection, why));
    }
  }

  #has(flag: number): boolean {
    return (this.info.flags & flag) !== 0;
  }

  #unreachable(): BlockError {
    const message = `the server is not reached: ${this.#whyLost}`;
    return new BlockError({ kind: 'io', message });
  }
}

const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/** Errors: those of the first connection; nothing is tried again. */
export const openSession = async (options: SessionOptions): Promise<Session> => {
  const first = await openConnection(options.address, options.limits);
  const session = new Session(options, first);
  await session.begin(first);
  return session;
};
