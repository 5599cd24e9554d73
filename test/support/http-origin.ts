/** A web server of a test's own on loopback: serves one content by ranges, and misbehaves as it is told. */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import type { Cleanup } from './scratch.ts';

export interface Asked {
  readonly path: string;
  readonly first: number;
  readonly last: number;
  readonly authorization: string | null;
  readonly connection: Socket;
}

/** True: answered (or not, on purpose); false: the server does what is right. */
export type Behaviour = (asked: Asked, response: ServerResponse, origin: HttpOrigin) => boolean;

const RANGE = /^bytes=(\d+)-(\d+)$/;

export class HttpOrigin {
  content: Buffer;
  etag: string | null = '"one"';
  lastModified: string | null = 'Mon, 01 Jun 2026 10:00:00 GMT';
  behaviour: Behaviour = () => false;
  /** Milliseconds before each answer. */
  delayMs = 0;
  readonly asked: Asked[] = [];
  /** Answers under way, and the most that were. */
  active = 0;
  mostActive = 0;
  readonly #sockets = new Set<Socket>();
  #server: Server;
  #port = 0;

  constructor(content: Buffer) {
    this.content = content;
    this.#server = this.#create();
  }

  get port(): number {
    return this.#port;
  }

  get base(): string {
    return `http://127.0.0.1:${this.#port}`;
  }

  url(name = 'disk.raw'): string {
    return `${this.base}/${name}`;
  }

  /** On the port that it had before, when it was stopped. */
  async start(): Promise<void> {
    this.#server = this.#create();
    await new Promise<void>((resolve, reject) => {
      this.#server.once('error', reject);
      this.#server.listen(this.#port, '127.0.0.1', resolve);
    });
    this.#port = (this.#server.address() as AddressInfo).port;
  }

  /** As if it was killed. */
  async stop(): Promise<void> {
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    for (const socket of this.#sockets) socket.resetAndDestroy();
    await closed;
  }

  /** The right answer. */
  serve(asked: Asked, response: ServerResponse, changed: { headers?: object } = {}): void {
    const total = this.content.length;
    const last = Math.min(asked.last, total - 1);
    if (asked.first >= total) {
      response.writeHead(416, { 'content-range': `bytes */${total}` }).end();
      return;
    }
    const body = this.content.subarray(asked.first, last + 1);
    response.writeHead(206, {
      'content-range': `bytes ${asked.first}-${last}/${total}`,
      'content-length': body.length,
      ...(this.etag === null ? {} : { etag: this.etag }),
      ...(this.lastModified === null ? {} : { 'last-modified': this.lastModified }),
      ...changed.headers,
    });
    response.end(body);
  }

  #create(): Server {
    const server = createServer((request, response) => this.#answer(request, response));
    server.on('connection', (socket) => {
      this.#sockets.add(socket);
      socket.on('error', () => undefined);
      socket.once('close', () => this.#sockets.delete(socket));
    });
    return server;
  }

  #answer(request: IncomingMessage, response: ServerResponse): void {
    // QEMU asks so for the length.
    if (request.method === 'HEAD') {
      const headers = { 'content-length': this.content.length, 'accept-ranges': 'bytes' };
      response.writeHead(200, headers).end();
      return;
    }
    const range = RANGE.exec(request.headers.range ?? '');
    const asked: Asked = {
      path: request.url ?? '',
      first: Number(range?.[1]),
      last: Number(range?.[2]),
      authorization: request.headers.authorization ?? null,
      connection: request.socket,
    };
    this.asked.push(asked);
    this.active++;
    this.mostActive = Math.max(this.mostActive, this.active);
    response.once('close', () => this.active--);
    setTimeout(() => {
      if (!this.behaviour(asked, response, this)) this.serve(asked, response);
    }, this.delayMs);
  }
}

/** Runs until the test ends. */
export const httpOrigin = async (t: Cleanup, content: Buffer): Promise<HttpOrigin> => {
  const origin = new HttpOrigin(content);
  await origin.start();
  t.after(() => origin.stop());
  return origin;
};
