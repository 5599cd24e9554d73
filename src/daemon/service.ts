/**
 * What a service manager (systemd) and the supervisor say to each other: sd_notify(3), the watchdog, and the store of
 * descriptors that outlive the supervisor. Plain datagrams; without NOTIFY_SOCKET nothing is sent.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { toBlockError } from '../base/block-error.ts';
import { type Log, printable } from '../base/log.ts';
import { sendDatagram } from '../os/descriptor-passing.ts';
import { forgetService } from './service-variables.ts';

/** Of sd_listen_fds(3): the first descriptor that is passed. */
const FIRST_PASSED = 3;
/** A manager whose queue is full gets a message again, this often and this long apart. */
const TRIES = 50;
const BETWEEN_TRIES_MS = 20;

export interface PassedDescriptor {
  readonly name: string;
  readonly descriptor: number;
}

export class Service {
  /** Within this time it wants to hear that all is well; null: it does not watch. */
  readonly watchdogMs: number | null;
  /** What an earlier process of this service has put into the store. */
  readonly passed: readonly PassedDescriptor[];
  readonly #socket: string | null;
  readonly #log: Log;
  /** Messages leave in the order in which they were sent. */
  #sending: Promise<void> = Promise.resolve();
  #waiting = 0;

  /** Takes the manager's variables out of `env`, so that no child believes they are for it. */
  constructor(env: NodeJS.ProcessEnv, log: Log) {
    const isOurs = (pid: string | undefined): boolean =>
      pid === undefined || pid === String(process.pid);
    this.#log = log;
    this.#socket = env['NOTIFY_SOCKET'] || null;
    const watchdogUs = Number(env['WATCHDOG_USEC']);
    const watches = this.#socket !== null && watchdogUs > 0 && isOurs(env['WATCHDOG_PID']);
    this.watchdogMs = watches ? watchdogUs / 1000 : null;
    this.passed = env['LISTEN_PID'] === String(process.pid) ? passedIn(env) : [];
    forgetService(env);
  }

  /** The mount is usable. */
  ready(text: string): void {
    this.#send(`READY=1\nSTATUS=${printable(text)}\n`);
  }

  status(text: string): void {
    this.#send(`STATUS=${printable(text)}\n`);
  }

  stopping(): void {
    this.#send('STOPPING=1\n');
  }

  alive(): void {
    this.#send('WATCHDOG=1\n');
  }

  /** Keeps a copy of a descriptor for a process that takes over from this one. */
  store(name: string, descriptor: number): void {
    this.#send(`FDSTORE=1\nFDNAME=${name}\n`, [descriptor]);
  }

  /** Gives back what was stored under a name. */
  forget(name: string): void {
    this.#send(`FDSTOREREMOVE=1\nFDNAME=${name}\n`);
  }

  /** Resolves when everything has been sent, or given up. */
  async flushed(): Promise<void> {
    await this.#sending;
  }

  // At once where it can be: a descriptor may be closed right after it was stored.
  #send(text: string, descriptors: readonly number[] = []): void {
    const socket = this.#socket;
    if (socket === null) return;
    if (this.#waiting === 0 && this.#try(socket, text, descriptors)) return;
    this.#waiting++;
    this.#sending = this.#sending
      .then(() => this.#deliver(socket, text, descriptors))
      .finally(() => this.#waiting--);
  }

  async #deliver(socket: string, text: string, descriptors: readonly number[]): Promise<void> {
    for (let left = TRIES; left > 0; left--) {
      if (this.#try(socket, text, descriptors)) return;
      await sleep(BETWEEN_TRIES_MS);
    }
    this.#log.warning('service manager', `does not take our messages: ${text.split('\n', 1)[0]}`);
  }

  /** False: its queue is full. */
  #try(socket: string, text: string, descriptors: readonly number[]): boolean {
    try {
      sendDatagram(socket, text, descriptors);
    } catch (error) {
      const failure = toBlockError(error);
      if (failure.errno === 'EAGAIN') return false;
      this.#log.warning('service manager', `does not hear us: ${failure.describe()}`);
    }
    return true;
  }
}

const passedIn = (env: NodeJS.ProcessEnv): PassedDescriptor[] => {
  const count = Number(env['LISTEN_FDS']);
  if (!Number.isInteger(count) || count < 1) return [];
  const names = (env['LISTEN_FDNAMES'] ?? '').split(':');
  return Array.from({ length: count }, (_, i) => ({
    name: names[i] ?? 'unknown',
    descriptor: FIRST_PASSED + i,
  }));
};
