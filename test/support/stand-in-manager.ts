/**
 * Stands in for a service manager: a real datagram socket for sd_notify, with the descriptors that come along, and the
 * start of a program with descriptors and variables as systemd hands them over.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import koffi from 'koffi';
import { addressOf } from '../../src/os/c-library.ts';
import type { Cleanup } from './scratch.ts';

const libc = koffi.load('libc.so.6');
const socketCall = libc.func('int socket(int domain, int type, int protocol)');
const bindCall = libc.func('int bind(int fd, uint8_t *address, uint32_t length)');
const recvmsgCall = libc.func('int64_t recvmsg(int fd, uint8_t *message, int flags)');

const AF_UNIX = 1;
const SOCK_DGRAM_CLOEXEC = 2 | 0o2000000;
const MSG_DONTWAIT_CMSG_CLOEXEC = 0x40 | 0x40000000;
const CONTROL_HEADER_BYTES = 16;
const POLL_MS = 5;

export interface Notification {
  /** `READY=1` and the like. */
  readonly fields: ReadonlyMap<string, string>;
  readonly descriptors: readonly number[];
  readonly atMs: number;
}

export interface Stored {
  readonly name: string;
  readonly descriptor: number;
}

export class StandInManager {
  readonly path: string;
  readonly received: Notification[] = [];
  /** The store of descriptors, as the messages fill and empty it. */
  readonly store: Stored[] = [];
  readonly #socket: number;
  #closed = false;
  readonly #polling: Promise<void>;

  constructor(path: string, t: Cleanup) {
    this.path = path;
    this.#socket = Number(socketCall(AF_UNIX, SOCK_DGRAM_CLOEXEC, 0));
    const address = new Uint8Array(new ArrayBuffer(110));
    address[0] = AF_UNIX;
    address.set(Buffer.from(path), 2);
    if (Number(bindCall(this.#socket, address, 2 + path.length + 1)) !== 0)
      throw new Error(`cannot bind ${path}`);
    this.#polling = this.#poll();
    t.after(() => this.close());
  }

  /** The first message with this field, or field and value, that has come or comes. */
  async until(field: string, value?: string, limitMs = 10_000): Promise<Notification> {
    for (const end = Date.now() + limitMs; ; await sleep(POLL_MS)) {
      const found = this.received.find(
        ({ fields }) => fields.has(field) && (value === undefined || fields.get(field) === value),
      );
      if (found !== undefined) return found;
      if (Date.now() > end) throw new Error(`no ${field}=${value ?? '…'} within ${limitMs} ms`);
    }
  }

  count(field: string): number {
    return this.received.filter(({ fields }) => fields.has(field)).length;
  }

  /** Starts a program as the main process of a service, with what is in the store. */
  start(command: readonly string[], env: Readonly<Record<string, string>> = {}): ChildProcess {
    const passed = this.store.map(({ descriptor }) => descriptor);
    const listen =
      passed.length === 0
        ? ''
        : `export LISTEN_PID=$$ LISTEN_FDS=${passed.length} LISTEN_FDNAMES=${this.store.map((s) => s.name).join(':')}; `;
    // The shell becomes the program, so its pid is the program's.
    return spawn('sh', ['-c', `${listen}exec "$@"`, 'sh', ...command], {
      stdio: ['ignore', 'pipe', 'pipe', ...passed],
      env: { ...process.env, NOTIFY_SOCKET: this.path, ...env },
    });
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await this.#polling;
    closeSync(this.#socket);
    this.emptyStore();
  }

  /** As `systemctl stop` does. */
  emptyStore(): void {
    for (const { descriptor } of this.store.splice(0)) closeSync(descriptor);
  }

  async #poll(): Promise<void> {
    while (!this.#closed) {
      while (this.#receive());
      await sleep(POLL_MS);
    }
  }

  #receive(): boolean {
    const payload = new Uint8Array(new ArrayBuffer(4096));
    const control = new Uint8Array(new ArrayBuffer(1024));
    const iovec = new DataView(new ArrayBuffer(16));
    const header = new DataView(new ArrayBuffer(56));
    const iovecBytes = new Uint8Array(iovec.buffer);
    const headerBytes = new Uint8Array(header.buffer);
    iovec.setBigUint64(0, BigInt(addressOf(payload)), true);
    iovec.setBigUint64(8, BigInt(payload.length), true);
    header.setBigUint64(16, BigInt(addressOf(iovecBytes)), true);
    header.setBigUint64(24, 1n, true);
    header.setBigUint64(32, BigInt(addressOf(control)), true);
    header.setBigUint64(40, BigInt(control.length), true);
    const got = Number(recvmsgCall(this.#socket, headerBytes, MSG_DONTWAIT_CMSG_CLOEXEC));
    if (got < 0) return false;
    const descriptors: number[] = [];
    const controlLength = Number(header.getBigUint64(40, true));
    if (controlLength >= CONTROL_HEADER_BYTES) {
      const view = new DataView(control.buffer);
      const length = Number(view.getBigUint64(0, true));
      for (let at = CONTROL_HEADER_BYTES; at + 4 <= length; at += 4)
        descriptors.push(view.getInt32(at, true));
    }
    this.#note(Buffer.from(payload.subarray(0, got)).toString('utf8'), descriptors);
    return payload.length + iovecBytes.length > 0;
  }

  #note(text: string, descriptors: readonly number[]): void {
    const fields = new Map(
      text
        .split('\n')
        .filter((line) => line !== '')
        .map((line): [string, string] => {
          const equals = line.indexOf('=');
          return [line.slice(0, equals), line.slice(equals + 1)];
        }),
    );
    this.received.push({ fields, descriptors, atMs: Date.now() });
    const name = fields.get('FDNAME') ?? 'stored';
    if (fields.has('FDSTORE'))
      for (const descriptor of descriptors) this.store.push({ name, descriptor });
    if (!fields.has('FDSTOREREMOVE')) return;
    for (const stored of this.store.filter((s) => s.name === name)) {
      closeSync(stored.descriptor);
      this.store.splice(this.store.indexOf(stored), 1);
    }
  }
}
