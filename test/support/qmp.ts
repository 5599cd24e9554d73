/** QMP by hand, for tests that want to see every line. */
import { once } from 'node:events';
import { createConnection, type Socket } from 'node:net';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';

export interface QmpMessage {
  readonly QMP?: unknown;
  readonly return?: unknown;
  readonly error?: { readonly class: string; readonly desc: string };
  readonly event?: string;
  readonly data?: Readonly<Record<string, unknown>>;
  readonly id?: unknown;
}

const ANSWER_MS = 10_000;

/** An engine that starts again listens a moment later. */
const connected = async (path: string): Promise<Socket> => {
  for (const end = Date.now() + ANSWER_MS; ; ) {
    const socket = createConnection(path);
    try {
      await once(socket, 'connect');
      return socket;
    } catch (error) {
      if (Date.now() > end) throw error;
      await sleep(50);
    }
  }
};

export class QmpConnection {
  readonly socket: Socket;
  readonly events: QmpMessage[] = [];
  readonly #answers: QmpMessage[] = [];
  #wake: () => void = () => undefined;

  private constructor(socket: Socket) {
    this.socket = socket;
    socket.on('error', () => undefined);
    const lines = createInterface({ input: socket });
    // An engine that is killed resets its connections.
    lines.on('error', () => undefined);
    lines.on('line', (line) => {
      const message = JSON.parse(line) as QmpMessage;
      if (message.event === undefined) this.#answers.push(message);
      else this.events.push(message);
      this.#wake();
    });
  }

  /** Connected and greeted; negotiated unless told otherwise. */
  static async open(
    path: string,
    options: { readonly negotiate?: boolean } = {},
  ): Promise<QmpConnection> {
    const connection = new QmpConnection(await connected(path));
    const greeting = await connection.answer();
    if (greeting.QMP === undefined) throw new Error(`no greeting: ${JSON.stringify(greeting)}`);
    if (options.negotiate !== false) await connection.execute('qmp_capabilities');
    return connection;
  }

  /** The next message that is no event. */
  async answer(): Promise<QmpMessage> {
    return this.#until('an answer', () => this.#answers.shift());
  }

  /** What a command returns. Throws `class: desc` for an error. */
  async execute(execute: string, given: object = {}): Promise<unknown> {
    const message = await this.ask({ execute, arguments: given });
    if (message.error === undefined) return message.return;
    throw new Error(`${message.error.class}: ${message.error.desc}`);
  }

  async ask(message: object): Promise<QmpMessage> {
    this.socket.write(JSON.stringify(message));
    return this.answer();
  }

  async event(name: string, limitMs = ANSWER_MS): Promise<QmpMessage> {
    return this.#until(name, () => this.events.find((e) => e.event === name), limitMs);
  }

  close(): void {
    this.socket.destroy();
  }

  async #until<T>(what: string, look: () => T | undefined, limitMs = ANSWER_MS): Promise<T> {
    const end = Date.now() + limitMs;
    for (;;) {
      const found = look();
      if (found !== undefined) return found;
      const left = end - Date.now();
      if (left <= 0) throw new Error(`not within ${limitMs} ms: ${what}`);
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, left);
        this.#wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
  }
}
