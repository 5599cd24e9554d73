/**
 * The control socket: QMP to any number of clients, each of which negotiates for itself. What a client sends, or does
 * not read, harms nobody else.
 */
import { chmodSync, rmSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { BlockError, toBlockError } from '../base/block-error.ts';
import type { Log } from '../base/log.ts';
import { JobError, type QmpErrorClass } from '../job/job-error.ts';
import { asciiJson, JsonStream } from './json-stream.ts';

const MAX_CLIENTS = 64;
/** Commands of one client that wait; more are not read from its socket. */
const MAX_QUEUED = 8;
/** A client that does not read its answers is cut off. */
const MAX_UNREAD_BYTES = 16 << 20;

export interface EventMessage {
  readonly name: string;
  readonly data: Readonly<Record<string, unknown>>;
}

export interface Monitor {
  /** Of the greeting, and what `query-version` returns. */
  readonly version: object;
  /** Errors: JobError, BlockError. */
  execute(name: string, given: Readonly<Record<string, unknown>>): Promise<unknown>;
  /** Calls with every event; returns what ends that. */
  listen(sink: (event: EventMessage) => void): () => void;
}

/** A monitor that is there when somebody wants it. */
export interface LateMonitor {
  readonly monitor: Promise<Monitor>;
  /** Somebody has connected. */
  readonly wanted: () => void;
}

/**
 * Listens on a socket of mode 0600; returns what closes it. A socket that a dead engine left is replaced. Who connects before
 * the monitor is there waits for it.
 */
export const serveMonitor = async (
  socketPath: string,
  { monitor, wanted }: LateMonitor,
  log: Log,
): Promise<() => void> => {
  rmSync(socketPath, { force: true });
  const clients = new Set<Conversation>();
  const server = createServer((socket) => {
    if (clients.size >= MAX_CLIENTS) {
      log.warning('control', `more than ${MAX_CLIENTS} clients: one is turned away`);
      socket.destroy();
      return;
    }
    wanted();
    const client = new Conversation(socket, monitor, log);
    clients.add(client);
    socket.once('close', () => clients.delete(client));
    client.begin();
  });
  const listening = monitor.then(
    ({ listen }) =>
      listen((event) => {
        const message = eventMessage(event);
        for (const client of clients) client.sendEvent(message);
      }),
    () => null,
  );
  const before = process.umask(0o177);
  try {
    await listen(server, socketPath);
  } finally {
    process.umask(before);
  }
  chmodSync(socketPath, 0o600);
  return () => {
    void listening.then((stop) => stop?.());
    server.close();
    for (const client of clients) client.end();
    rmSync(socketPath, { force: true });
  };
};

const listen = (server: Server, path: string): Promise<void> =>
  new Promise((resolve, reject) => {
    server.once('error', (error) => reject(toBlockError(error, { op: 'listen', path })));
    server.listen(path, () => resolve());
  });

const eventMessage = ({ name, data }: EventMessage): object => {
  const now = Date.now();
  const timestamp = { seconds: Math.floor(now / 1000), microseconds: (now % 1000) * 1000 };
  return Object.keys(data).length === 0
    ? { event: name, timestamp }
    : { event: name, data, timestamp };
};

class Conversation {
  readonly #socket: Socket;
  readonly #monitor: Promise<Monitor>;
  readonly #log: Log;
  readonly #input = new JsonStream();
  #negotiated = false;
  #queued = 0;
  #last: Promise<void> = Promise.resolve();

  constructor(socket: Socket, monitor: Promise<Monitor>, log: Log) {
    this.#socket = socket;
    this.#monitor = monitor;
    this.#log = log;
  }

  begin(): void {
    this.#socket.on('error', () => this.#socket.destroy());
    this.#monitor.then(
      ({ version }) => this.#greet(version),
      () => this.#socket.destroy(),
    );
  }

  #greet(version: object): void {
    this.#send({ QMP: { version, capabilities: [] } });
    this.#socket.on('data', (chunk: Buffer) => {
      for (const item of this.#input.push(chunk)) {
        if ('error' in item) this.#inOrder(async () => this.#error('GenericError', item.error));
        else this.#inOrder(() => this.#handle(item.value));
      }
    });
  }

  sendEvent(message: object): void {
    if (this.#negotiated) this.#send(message);
  }

  end(): void {
    this.#socket.end();
    this.#socket.destroySoon();
  }

  /** One command after the other; a client that sends more than a few at once is not read meanwhile. */
  #inOrder(work: () => Promise<void>): void {
    this.#queued++;
    if (this.#queued >= MAX_QUEUED) this.#socket.pause();
    this.#last = this.#last.then(work).finally(() => {
      this.#queued--;
      if (this.#queued < MAX_QUEUED) this.#socket.resume();
    });
  }

  async #handle(value: unknown): Promise<void> {
    if (!isObject(value)) {
      this.#error('GenericError', 'QMP input must be a JSON object');
      return;
    }
    const { id } = value;
    try {
      const { name, given } = commandOf(value);
      const result = await this.#execute(name, given);
      this.#send(id === undefined ? { return: result } : { return: result, id });
    } catch (error) {
      const { errorClass, message } = qmpErrorOf(error);
      if (!(error instanceof JobError) && !(error instanceof BlockError)) {
        this.#log.error('control', `a command broke: ${String((error as Error).stack ?? error)}`);
      }
      this.#error(errorClass, message, id);
    }
  }

  async #execute(name: string, given: Readonly<Record<string, unknown>>): Promise<unknown> {
    const isGreeting = name === 'qmp_capabilities';
    if (!this.#negotiated && !isGreeting) {
      const message = "Expecting capabilities negotiation with 'qmp_capabilities'";
      throw new JobError(message, 'CommandNotFound');
    }
    if (!isGreeting) return (await this.#monitor).execute(name, given);
    if (this.#negotiated) {
      const message = 'Capabilities negotiation is already complete, command ignored';
      throw new JobError(message, 'CommandNotFound');
    }
    const { enable, ...unknown } = given;
    const [first] = Object.keys(unknown);
    if (first !== undefined) throw new JobError(`Parameter '${first}' is unexpected`);
    if (Array.isArray(enable) ? enable.length > 0 : enable !== undefined) {
      throw new JobError(`Capability '${String(enable)}' not available`);
    }
    this.#negotiated = true;
    return {};
  }

  #error(errorClass: QmpErrorClass, desc: string, id?: unknown): void {
    const error = { class: errorClass, desc };
    this.#send(id === undefined ? { error } : { error, id });
  }

  #send(message: object): void {
    if (this.#socket.destroyed || this.#socket.writableEnded) return;
    this.#socket.write(`${asciiJson(message)}\r\n`);
    if (this.#socket.writableLength > MAX_UNREAD_BYTES) this.#socket.destroy();
  }
}

const isObject = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

const commandOf = (
  message: Readonly<Record<string, unknown>>,
): { readonly name: string; readonly given: Readonly<Record<string, unknown>> } => {
  for (const key of Object.keys(message)) {
    if (!['execute', 'arguments', 'id'].includes(key)) {
      throw new JobError(`QMP input member '${key}' is unexpected`);
    }
  }
  const { execute, arguments: given } = message;
  if (execute === undefined) throw new JobError("QMP input lacks member 'execute'");
  if (typeof execute !== 'string') {
    throw new JobError("QMP input member 'execute' must be a string");
  }
  if (given !== undefined && !isObject(given)) {
    throw new JobError("QMP input member 'arguments' must be an object");
  }
  return { name: execute, given: given ?? {} };
};

const qmpErrorOf = (error: unknown): { errorClass: QmpErrorClass; message: string } =>
  error instanceof JobError
    ? { errorClass: error.errorClass, message: error.message }
    : { errorClass: 'GenericError', message: toBlockError(error).describe() };
