/** An NBD server of a test's own that negotiates as it should and then answers whatever the test says. */
import { once } from 'node:events';
import { createServer, type Server, type Socket } from 'node:net';
import { viewOf, writeU64BE } from '../../src/base/byte-order.ts';
import type { Cleanup } from './scratch.ts';

export interface StubRequest {
  readonly command: number;
  readonly flags: number;
  /** As it came: eight bytes. */
  readonly cookie: Uint8Array;
  readonly offset: number;
  readonly lengthBytes: number;
}

export interface StubOptions {
  readonly sizeBytes: number;
  readonly flags?: number;
  readonly structured?: boolean;
  /** Bytes that are sent in place of the whole greeting and negotiation. */
  readonly greeting?: Uint8Array;
  /** Replies to an option, in place of the right ones; null: the right ones. */
  readonly option?: (option: number) => Uint8Array | null;
  readonly answer: (request: StubRequest, socket: Socket) => void;
}

export const CONTEXT_ID = 7;

export class NbdStub {
  readonly #options: StubOptions;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  connections = 0;
  url = '';

  constructor(options: StubOptions) {
    this.#options = options;
    this.#server = createServer((socket) => {
      this.connections++;
      this.#sockets.add(socket);
      socket.on('error', () => undefined);
      socket.once('close', () => this.#sockets.delete(socket));
      new Conversation(socket, options).begin();
    });
  }

  async listen(): Promise<void> {
    this.#server.listen(0, '127.0.0.1');
    await once(this.#server, 'listening');
    this.url = `nbd://127.0.0.1:${(this.#server.address() as { port: number }).port}/disk`;
  }

  async close(): Promise<void> {
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    for (const socket of this.#sockets) socket.destroy();
    await closed;
  }

  get options(): StubOptions {
    return this.#options;
  }
}

class Conversation {
  readonly #socket: Socket;
  readonly #options: StubOptions;
  #bytes = Buffer.alloc(0);
  #state: 'flags' | 'options' | 'requests' = 'flags';

  constructor(socket: Socket, options: StubOptions) {
    this.#socket = socket;
    this.#options = options;
  }

  begin(): void {
    const { greeting } = this.#options;
    if (greeting !== undefined) {
      this.#socket.end(greeting);
      return;
    }
    this.#socket.write(Buffer.concat([Buffer.from('NBDMAGICIHAVEOPT'), Buffer.from([0, 3])]));
    this.#socket.on('data', (data: Buffer) => {
      this.#bytes = Buffer.concat([this.#bytes, data]);
      while (this.#step());
    });
  }

  #take(length: number): Buffer | null {
    if (this.#bytes.length < length) return null;
    const taken = this.#bytes.subarray(0, length);
    this.#bytes = this.#bytes.subarray(length);
    return taken;
  }

  #step(): boolean {
    if (this.#state === 'flags') {
      if (this.#take(4) === null) return false;
      this.#state = 'options';
      return true;
    }
    return this.#state === 'options' ? this.#optionStep() : this.#requestStep();
  }

  #optionStep(): boolean {
    if (this.#bytes.length < 16 || this.#bytes.length < 16 + this.#bytes.readUInt32BE(12))
      return false;
    const option = this.#bytes.readUInt32BE(8);
    this.#take(16 + this.#bytes.readUInt32BE(12));
    this.#socket.write(this.#options.option?.(option) ?? this.#rightReply(option));
    if (option === 7) this.#state = 'requests';
    return true;
  }

  #rightReply(option: number): Uint8Array {
    const { sizeBytes, flags = 1, structured = true } = this.#options;
    if (option === 8) return optionReply(option, structured ? 1 : 0x8000_0001);
    if (option === 10) {
      const context = Buffer.concat([u32(CONTEXT_ID), Buffer.from('base:allocation')]);
      return Buffer.concat([optionReply(option, 4, context), optionReply(option, 1)]);
    }
    const info = new Uint8Array(12);
    writeU64BE(viewOf(info), 2, sizeBytes);
    viewOf(info).setUint16(10, flags);
    return Buffer.concat([optionReply(option, 3, info), optionReply(option, 1)]);
  }

  #requestStep(): boolean {
    const head = this.#take(28);
    if (head === null) return false;
    const command = head.readUInt16BE(6);
    const lengthBytes = head.readUInt32BE(24);
    if (command === 1 && this.#bytes.length < lengthBytes) {
      this.#bytes = Buffer.concat([head, this.#bytes]);
      return false;
    }
    if (command === 1) this.#take(lengthBytes);
    if (command === 2) {
      this.#socket.end();
      return false;
    }
    const request = {
      command,
      flags: head.readUInt16BE(4),
      cookie: Uint8Array.from(head.subarray(8, 16)),
      offset: Number(head.readBigUInt64BE(16)),
      lengthBytes,
    };
    this.#options.answer(request, this.#socket);
    return true;
  }
}

export const u32 = (value: number): Buffer => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value >>> 0);
  return bytes;
};

export const u64 = (value: number | bigint): Buffer => {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(BigInt(value));
  return bytes;
};

export const optionReply = (option: number, type: number, data: Uint8Array = Buffer.alloc(0)) =>
  Buffer.concat([
    Buffer.from('0003e889045565a9', 'hex'),
    u32(option),
    u32(type),
    u32(data.length),
    data,
  ]);

export const simpleReply = (
  cookie: Uint8Array,
  error: number,
  data: Uint8Array = Buffer.alloc(0),
) => Buffer.concat([u32(0x67446698), u32(error), cookie, data]);

/** A chunk of a structured reply; `last`: with the flag DONE. `lengthBytes`: what it claims, when that is a lie. */
export const chunk = (
  cookie: Uint8Array,
  fields: { readonly type: number; readonly last: boolean; readonly lengthBytes?: number },
  data: Uint8Array = Buffer.alloc(0),
) => {
  const head = Buffer.alloc(8);
  head.writeUInt32BE(0x668e33ef, 0);
  head.writeUInt16BE(fields.last ? 1 : 0, 4);
  head.writeUInt16BE(fields.type, 6);
  return Buffer.concat([head, cookie, u32(fields.lengthBytes ?? data.length), data]);
};

export const nbdStub = async (t: Cleanup, options: StubOptions): Promise<NbdStub> => {
  const stub = new NbdStub(options);
  t.after(() => stub.close());
  await stub.listen();
  return stub;
};
