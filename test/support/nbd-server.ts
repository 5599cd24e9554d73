/** Real NBD servers of a test: nbdkit and qemu-nbd, on a socket of this machine, killed when the test ends. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { rmSync } from 'node:fs';
import { readdir, readFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Cleanup } from './scratch.ts';

const READY_MS = 10_000;

export class NbdServer {
  readonly url: string;
  readonly #socket: string;
  readonly #command: readonly string[];
  #child: ChildProcess | null = null;
  #log = '';

  /** `command`: program and arguments; it listens on `socket`. */
  constructor(socket: string, command: readonly string[], exportName = '') {
    this.#socket = socket;
    this.#command = command;
    this.url = `nbd+unix:///${encodeURIComponent(exportName)}?socket=${socket}`;
  }

  get log(): string {
    return this.#log;
  }

  async start(): Promise<void> {
    rmSync(this.#socket, { force: true });
    const [program = '', ...args] = this.#command;
    const child = spawn(program, args, { stdio: ['ignore', 'ignore', 'pipe'] });
    this.#child = child;
    let failure = '';
    child.once('error', (error) => (failure = `${program} is missing: ${error.message}`));
    child.stderr.on('data', (text: Buffer) => (this.#log += text.toString()));
    const end = Date.now() + READY_MS;
    while (!(await accepts(this.#socket))) {
      if (failure !== '' || child.exitCode !== null || Date.now() > end)
        throw new Error(`${this.#command.join(' ')} does not listen: ${failure}${this.#log}`);
      await sleep(10);
    }
  }

  async kill(): Promise<void> {
    const child = this.#child;
    this.#child = null;
    if (child === null || child.exitCode !== null || child.signalCode !== null) return;
    const ended = once(child, 'exit');
    child.kill('SIGKILL');
    await ended;
  }

  /** Stopped, but there: it answers nothing. A thread that is at work stops a moment after the signal. */
  async freeze(): Promise<void> {
    const pid = this.#child?.pid;
    if (pid === undefined) return;
    process.kill(pid, 'SIGSTOP');
    for (const end = Date.now() + READY_MS; !(await isStopped(pid)); ) {
      if (Date.now() > end) throw new Error(`${this.#command.join(' ')} does not stop`);
      await sleep(1);
    }
  }

  thaw(): void {
    this.#child?.kill('SIGCONT');
  }
}

const isStopped = async (pid: number): Promise<boolean> => {
  const threads = await readdir(`/proc/${pid}/task`);
  const states = threads.map((id) => readFile(`/proc/${pid}/task/${id}/status`, 'utf8'));
  return (await Promise.all(states)).every((text) => /^State:\tT/m.test(text));
};

/** The file is there a moment before the server listens. */
const accepts = (path: string): Promise<boolean> =>
  new Promise((resolve) => {
    const socket = connect({ path });
    socket.once('error', () => resolve(false));
    socket.once('connect', () => {
      socket.destroy();
      resolve(true);
    });
  });

const started = async (t: Cleanup, server: NbdServer): Promise<NbdServer> => {
  t.after(() => server.kill());
  await server.start();
  return server;
};

/** `args`: filters, plugin and its parameters. */
export const nbdkit = (t: Cleanup, socket: string, args: readonly string[]): Promise<NbdServer> =>
  started(t, new NbdServer(socket, ['nbdkit', '-f', '-v', '-U', socket, ...args]));

/** `args`: options and the image. */
export const qemuNbd = (t: Cleanup, socket: string, args: readonly string[]): Promise<NbdServer> =>
  started(t, new NbdServer(socket, ['qemu-nbd', '--persistent', '-e', '8', '-k', socket, ...args]));
