/**
 * An engine process as its supervisor sees it: started with its modules loaded, then told to begin. One that has not begun
 * yet waits as a spare, so that the place of one that dies is taken without a start.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { type BlockError, toBlockError } from '../base/block-error.ts';
import {
  ENGINE_DESCRIPTORS,
  ENGINE_PROTOCOL,
  type EngineConfig,
  type EngineMessage,
  type SupervisorMessage,
} from './messages.ts';

/** Four fdatasyncs at once froze everything else with the default of 4. */
const IO_THREADS = 32;

export interface EngineProcessOptions {
  /** Of the mount; null for fuse-native. */
  readonly fuse: number | null;
  /** A memory file that outlives the engine, see black-box.ts. */
  readonly blackBox: number;
  readonly received: (message: EngineMessage) => void;
  readonly ended: (how: string) => void;
  /** It could not be started. */
  readonly failed: (error: BlockError) => void;
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

  constructor(options: EngineProcessOptions) {
    const program = fileURLToPath(new URL('./engine.js', import.meta.url));
    const child = spawn(process.execPath, [program], {
      stdio: [
        'ignore',
        'inherit',
        'inherit',
        'ipc',
        // In the order of ENGINE_DESCRIPTORS.
        options.fuse ?? 'ignore',
        options.blackBox,
      ],
      serialization: 'advanced',
      env: { ...process.env, UV_THREADPOOL_SIZE: String(IO_THREADS) },
    });
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
      else options.received(message);
    });
    child.once('error', (error) => {
      told(false);
      options.failed(toBlockError(error, { op: 'start engine' }));
    });
    child.once('exit', (code, signal) => {
      told(false);
      options.ended(signal ?? String(code));
    });
  }

  get pid(): number {
    return this.#child.pid ?? 0;
  }

  get isAlive(): boolean {
    return this.#child.exitCode === null && this.#child.signalCode === null;
  }

  begin(config: Omit<EngineConfig, 'fuse'>, init: EngineConfig['fuse']): void {
    this.begunMs = Date.now();
    const fuse = init === null ? null : { ...init, descriptor: ENGINE_DESCRIPTORS.fuse };
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
}
