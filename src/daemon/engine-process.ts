/**
 * An engine process as its supervisor sees it: started, to load its modules, then told to begin. One that has not begun yet
 * waits as a spare, so that the place of one that dies is taken without a start; the first one is started before anything is
 * known of the mount, and loads while that is read and mounted.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { type BlockError, toBlockError } from '../base/block-error.ts';
import { sendDescriptors, socketPair } from '../os/descriptor-passing.ts';
import {
  ENGINE_PROTOCOL,
  type EngineConfig,
  type EngineMessage,
  type SupervisorMessage,
} from './messages.ts';
import { withoutService } from './service-variables.ts';

/** Four fdatasyncs at once froze everything else with the default of 4. */
const IO_THREADS = 32;
const STDERR = 2;

export interface EngineListener {
  readonly received: (message: EngineMessage) => void;
  readonly ended: (how: string) => void;
  /** It could not be started. */
  readonly failed: (error: BlockError) => void;
}

/** What an engine begins with, beside its configuration. */
export interface EngineBeginning {
  /** Of the mount, and what INIT settled; null for fuse-native. */
  readonly fuse: EngineConfig['fuse'];
  /** A memory file that outlives the engine, see black-box.ts. */
  readonly blackBox: number;
}

export class EngineProcess {
  /** True when its modules are loaded and it speaks this supervisor's messages; false when it never will. */
  readonly loaded: Promise<boolean>;
  readonly ended: Promise<void>;
  /** When it was told to begin; `Date.now()`. */
  begunMs = 0;
  /** The mount is gone, it says. */
  unmounted = false;
  /** It was told to give its work to another. */
  handsOver = false;
  /** It has told that it serves. */
  ready = false;
  readonly #child: ChildProcess;
  /** Over which it gets its descriptors; null when it has them, or never will. */
  #socket: number | null;
  #listener: EngineListener | null = null;

  constructor() {
    const program = fileURLToPath(new URL('./engine.js', import.meta.url));
    const [ours, theirs] = socketPair();
    const child = spawn(process.execPath, [program], {
      // In the order of ENGINE_DESCRIPTORS. The last one only keeps the number from Node, which would take it for a loop of its own.
      stdio: ['ignore', STDERR, STDERR, 'ipc', theirs, STDERR],
      serialization: 'advanced',
      env: { ...withoutService(process.env), UV_THREADPOOL_SIZE: String(IO_THREADS) },
    });
    closeSync(theirs);
    this.#socket = ours;
    this.#child = child;
    let told: (speaksOurs: boolean) => void = () => undefined;
    this.loaded = new Promise((resolve) => {
      told = resolve;
    });
    this.ended = new Promise((resolve) => {
      child.once('exit', () => resolve());
      child.once('error', () => resolve());
    });
    child.on('message', (message: EngineMessage) => {
      if (message.type === 'loaded') told(message.protocol === ENGINE_PROTOCOL);
      else this.#listener?.received(message);
    });
    child.once('error', (error) => {
      told(false);
      this.#closeSocket();
      this.#listener?.failed(toBlockError(error, { op: 'start engine' }));
    });
    child.once('exit', (code, signal) => {
      told(false);
      this.#closeSocket();
      this.#listener?.ended(signal ?? String(code));
    });
  }

  /** Before it is told to begin: until then it has nothing to say. */
  listen(listener: EngineListener): void {
    this.#listener = listener;
  }

  get pid(): number {
    return this.#child.pid ?? 0;
  }

  /** False also for one that could not be started. */
  get isAlive(): boolean {
    const { pid, exitCode, signalCode } = this.#child;
    return pid !== undefined && exitCode === null && signalCode === null;
  }

  begin(config: Omit<EngineConfig, 'fuse'>, { fuse, blackBox }: EngineBeginning): void {
    this.begunMs = Date.now();
    try {
      if (this.#socket !== null)
        sendDescriptors(
          this.#socket,
          fuse === null ? [STDERR, blackBox] : [STDERR, blackBox, fuse.descriptor],
        );
    } catch {
      // It has just ended, which is told in a moment.
    }
    this.#closeSocket();
    this.send({ type: 'start', config: { ...config, fuse } });
  }

  /** False: it cannot hear it. */
  send(message: SupervisorMessage): boolean {
    if (!this.#child.connected) return false;
    this.#child.send(message, () => undefined);
    return true;
  }

  kill(): void {
    this.#child.kill('SIGKILL');
  }
  #closeSocket(): void {
    if (this.#socket !== null) closeSync(this.#socket);
    this.#socket = null;
  }
}
