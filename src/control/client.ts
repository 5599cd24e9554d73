/** A QMP client, for the commands of this program. */
import { createConnection, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { BlockError, toBlockError } from '../base/block-error.ts';
import { asciiJson, JsonStream } from './json-stream.ts';

const CONNECT_PATIENCE_MS = 5000;
const RESTART_PATIENCE_MS = 3000;
const RETRY_MS = 50;

/** An answer that is an error. */
export class QmpError extends Error {
  override readonly name = 'QmpError';
  readonly errorClass: string;

  constructor(errorClass: string, message: string) {
    super(message);
    this.errorClass = errorClass;
  }
}

export interface QmpEvent {
  readonly event: string;
  readonly data: Readonly<Record<string, unknown>>;
}

interface Message {
  readonly QMP?: unknown;
  readonly event?: string;
  readonly data?: Readonly<Record<string, unknown>>;
  readonly id?: unknown;
  readonly return?: unknown;
  readonly error?: { readonly class: string; readonly desc: string };
}

interface Waiting {
  resolve(value: unknown): void;
  reject(error: unknown): void;
}

export class QmpClient {
  readonly #socket: Socket;
  readonly #input = new JsonStream();
  readonly #waiting = new Map<number, Waiting>();
  readonly #listeners = new Set<(event: QmpEvent) => void>();
  readonly #closeListeners = new Set<(error: BlockError) => void>();
  readonly #subject: string;
  #nextId = 1;
  #greeted: () => void = () => undefined;
  #failure: BlockError | null = null;

  private constructor(socket: Socket, subject: string) {
    this.#socket = socket;
    this.#subject = subject;
    socket.on('data', (chunk: Buffer) => this.#receive(chunk));
    socket.on('error', (error) => this.#fail(toBlockError(error, { op: 'connect' })));
    socket.on('close', () => this.#fail(gone(subject)));
  }

  /**
   * Connects and negotiates; an engine that is starting again gets a moment. `subject`: what messages call the other
   * side. Errors: ECONNREFUSED, ENOENT, ETIMEDOUT.
   */
  static async connect(path: string, subject: string): Promise<QmpClient> {
    for (const end = Date.now() + RESTART_PATIENCE_MS; ; ) {
      try {
        return await QmpClient.#connectOnce(path, subject);
      } catch (error) {
        const { errno } = toBlockError(error);
        const isStarting = errno === 'ECONNREFUSED' || errno === 'ENOENT' || errno === 'ECONNRESET';
        if (!isStarting || Date.now() > end) throw error;
        await sleep(RETRY_MS);
      }
    }
  }

  static async #connectOnce(path: string, subject: string): Promise<QmpClient> {
    const socket = createConnection(path);
    const client = new QmpClient(socket, subject);
    const timer = setTimeout(() => client.#fail(silent(subject)), CONNECT_PATIENCE_MS);
    try {
      await new Promise<void>((resolve, reject) => {
        client.#greeted = resolve;
        client.#waiting.set(0, { resolve: () => undefined, reject });
      });
      client.#waiting.delete(0);
      await client.execute('qmp_capabilities');
      return client;
    } catch (error) {
      socket.destroy();
      throw error;
    } finally {
      clearTimeout(timer);
    }
  }

  /** What the command returns. Errors: QmpError; BlockError ECONNRESET when the engine goes away. */
  execute(name: string, given: Readonly<Record<string, unknown>> = {}): Promise<unknown> {
    if (this.#failure !== null) return Promise.reject(this.#failure);
    const id = this.#nextId++;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.#socket.write(`${asciiJson({ execute: name, arguments: given, id })}\n`);
    });
  }

  /** Returns what ends listening. */
  listen(listener: (event: QmpEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Called once when the other side goes away, or this one closes. */
  onClosed(listener: (error: BlockError) => void): void {
    if (this.#failure !== null) listener(this.#failure);
    else this.#closeListeners.add(listener);
  }

  close(): void {
    this.#failure ??= gone(this.#subject);
    this.#socket.destroy();
  }

  #receive(chunk: Buffer): void {
    for (const item of this.#input.push(chunk)) {
      if ('error' in item) this.#fail(strange(this.#subject, item.error));
      else this.#take(item.value as Message);
    }
  }

  #take(message: Message): void {
    if (message.QMP !== undefined) this.#greeted();
    else if (message.event !== undefined) {
      for (const listener of this.#listeners) {
        listener({ event: message.event, data: message.data ?? {} });
      }
    } else if (typeof message.id === 'number') {
      const waiting = this.#waiting.get(message.id);
      this.#waiting.delete(message.id);
      if (message.error === undefined) waiting?.resolve(message.return);
      else waiting?.reject(new QmpError(message.error.class, message.error.desc));
    }
  }

  #fail(error: BlockError): void {
    this.#failure ??= error;
    this.#socket.destroy();
    for (const { reject } of this.#waiting.values()) reject(this.#failure);
    this.#waiting.clear();
    for (const listener of this.#closeListeners) listener(this.#failure);
    this.#closeListeners.clear();
  }
}

const gone = (path: string): BlockError =>
  new BlockError({ kind: 'io', errno: 'ECONNRESET', message: 'the engine has gone away', path });

const silent = (path: string): BlockError =>
  new BlockError({ kind: 'io', errno: 'ETIMEDOUT', message: 'the engine does not answer', path });

const strange = (path: string, what: string): BlockError =>
  new BlockError({ kind: 'io', message: `the engine sent what is no QMP: ${what}`, path });
