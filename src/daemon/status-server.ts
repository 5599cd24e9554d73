/**
 * The control socket, as far as it goes today: QMP's greeting and negotiation, `query-version`, `__vdiskfs_status` and
 * `quit`. One JSON object a line; a client that sends anything else, or too much, gets an error or is cut off.
 */
import { chmodSync, rmSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import type { Backend } from '../../mount/backend.ts';
import type { Catalog } from '../../mount/catalog.ts';
import { BlockError, toBlockError } from '../base/block-error.ts';
import type { Log } from '../base/log.ts';
import type { EngineConfig } from './messages.ts';

const MAX_LINE_BYTES = 64 << 10;
const MAX_CLIENTS = 64;

const VERSION = { qemu: { micro: 0, minor: 2, major: 7 }, package: 'vdiskfs' };

export interface StatusSource {
  readonly config: EngineConfig;
  readonly catalog: Catalog;
  readonly backend: Backend;
  readonly log: Log;
}

/** Listens on `config.socketPath`, mode 0600; returns what closes it. A socket that a dead engine left is replaced. */
export const serveStatus = async (source: StatusSource): Promise<() => void> => {
  const { socketPath } = source.config;
  rmSync(socketPath, { force: true });
  const clients = new Set<Socket>();
  const server = createServer((socket) => {
    if (clients.size >= MAX_CLIENTS) {
      socket.destroy();
      return;
    }
    clients.add(socket);
    socket.once('close', () => clients.delete(socket));
    socket.on('error', () => socket.destroy());
    new Conversation(socket, source).begin();
  });
  const before = process.umask(0o177);
  try {
    await listen(server, socketPath);
  } finally {
    process.umask(before);
  }
  chmodSync(socketPath, 0o600);
  return () => {
    server.close();
    for (const client of clients) client.destroy();
    rmSync(socketPath, { force: true });
  };
};

const listen = (server: Server, path: string): Promise<void> =>
  new Promise((resolve, reject) => {
    server.once('error', (error) => reject(toBlockError(error, { op: 'listen', path })));
    server.listen(path, () => resolve());
  });

interface Command {
  readonly execute?: unknown;
  readonly arguments?: unknown;
  readonly id?: unknown;
}

class Conversation {
  readonly #socket: Socket;
  readonly #source: StatusSource;
  #text = '';
  #negotiated = false;

  constructor(socket: Socket, source: StatusSource) {
    this.#socket = socket;
    this.#source = source;
  }

  begin(): void {
    this.#send({ QMP: { version: VERSION, capabilities: [] } });
    this.#socket.setEncoding('utf8');
    this.#socket.on('data', (text: string) => this.#receive(text));
  }

  #receive(text: string): void {
    this.#text += text;
    for (let end = this.#text.indexOf('\n'); end >= 0; end = this.#text.indexOf('\n')) {
      const line = this.#text.slice(0, end).trim();
      this.#text = this.#text.slice(end + 1);
      if (line !== '') void this.#execute(line);
    }
    if (this.#text.length <= MAX_LINE_BYTES) return;
    this.#error('GenericError', 'the line is too long', undefined);
    this.#socket.destroy();
  }

  async #execute(line: string): Promise<void> {
    let command: Command;
    try {
      const parsed: unknown = JSON.parse(line);
      if (typeof parsed !== 'object' || parsed === null) throw new SyntaxError('no object');
      command = parsed;
    } catch {
      this.#error('GenericError', 'JSON parse error', undefined);
      return;
    }
    const { execute, id } = command;
    try {
      await this.#run(String(execute), id);
    } catch (error) {
      this.#error('GenericError', toBlockError(error).describe(), id);
    }
  }

  async #run(name: string, id: unknown): Promise<void> {
    if (!this.#negotiated && name !== 'qmp_capabilities') {
      const text = "Expecting capabilities negotiation with 'qmp_capabilities'";
      this.#error('CommandNotFound', text, id);
    } else if (!this.#negotiated) {
      this.#negotiated = true;
      this.#return({}, id);
    } else if (name === 'query-version') this.#return(VERSION, id);
    else if (name === '__vdiskfs_status') this.#return(await statusDocument(this.#source), id);
    else this.#error('CommandNotFound', `The command ${name} has not been found`, id);
  }

  #return(value: unknown, id: unknown): void {
    this.#send(id === undefined ? { return: value } : { return: value, id });
  }

  #error(kind: string, desc: string, id: unknown): void {
    const error = { class: kind, desc };
    this.#send(id === undefined ? { error } : { error, id });
  }

  #send(message: unknown): void {
    if (this.#socket.destroyed) return;
    this.#socket.write(`${asciiJson(message)}\r\n`);
  }
}

// Output is ASCII, as QEMU's is.
const asciiJson = (message: unknown): string =>
  JSON.stringify(message).replace(
    /[\u0080-\uffff]/g,
    (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`,
  );

/** What `vdiskfs status --json` prints of one mount. */
const statusDocument = async ({ config, catalog, backend }: StatusSource): Promise<object> => {
  const { views, ignored } = await catalog.status();
  return {
    mountpoint: config.mountpoint,
    source: config.sourceLabel,
    backend: backend.name,
    'read-only': config.readOnly,
    threads: config.threads,
    pid: process.pid,
    'supervisor-pid': process.ppid,
    generation: config.generation,
    counters: backend.counters(),
    views: views.map((v) => ({
      ...v,
      error: v.error === null ? null : BlockError.fromWire(v.error).describe(),
    })),
    ignored,
  };
};
