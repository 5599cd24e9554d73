/**
 * What follows an engine that has ended: how soon, whether it is a careful one, and what it is not to touch. It judges deaths
 * (blame.ts) by what was in flight, which it reads from the memory that outlives engines (black-box.ts).
 *
 * A careful engine that lives gives its place to an ordinary one, unless it is at work on what one has died of before.
 */
import type { Log } from '../base/log.ts';
import { openMemoryFile } from '../os/descriptors.ts';
import { clearTasks, tasksIn } from './black-box.ts';
import { Blame } from './blame.ts';
import type { EngineProcess } from './engine-process.ts';
import type { EngineConfig } from './messages.ts';
import { HEALTHY_AFTER_MS, RestartPace } from './restart-pace.ts';

export interface SuccessionOptions {
  readonly mountpoint: string;
  readonly log: Log;
  /** Something is blocked from now on, as people are told. */
  readonly blocked: (text: string) => void;
  /** Whether an engine is the one of the mount, and is not on its way out. */
  readonly isInPlace: (engine: EngineProcess) => boolean;
  /** Has the engine in place hand over to the next one. */
  readonly relieve: () => void;
}

export class Succession {
  /** The descriptor of the memory that the next engine records in. */
  readonly blackBox = openMemoryFile('vdiskfs-tasks');
  readonly #options: SuccessionOptions;
  readonly #blame = new Blame();
  readonly #pace = new RestartPace();
  /** Of the engine that was begun last. */
  #careful = false;
  #healthyTimer: NodeJS.Timeout | undefined;

  constructor(options: SuccessionOptions) {
    this.#options = options;
  }

  /** Another engine is about to begin: how. Nothing is in flight. */
  next(): Pick<EngineConfig, 'careful' | 'blocked'> {
    this.#careful = this.#blame.isCareful(Date.now());
    clearTasks(this.blackBox);
    return { careful: this.#careful, blocked: this.#blame.blocked };
  }

  /** The engine that was begun last serves. */
  serves(engine: EngineProcess): void {
    if (this.#careful) this.#leaveCareLater(engine);
  }

  /** Judges a death; how long the next engine waits, in ms. */
  died(engine: EngineProcess, how: string): number {
    const { mountpoint, log, blocked } = this.#options;
    const nowMs = Date.now();
    const tasks = this.#careful ? tasksIn(this.blackBox) : null;
    const guilty = this.#blame.died({ nowMs, how, tasks });
    if (guilty !== null) {
      const text = `engines die of it again and again: it answers EIO until \`vdiskfs restart ${mountpoint}\``;
      log.error(guilty.name, text);
      blocked(`${guilty.name}: ${text}`);
    }
    const pauseMs = this.#pace.pauseAfter(nowMs - engine.begunMs, { isExplained: guilty !== null });
    log.error(mountpoint, `the engine ended with ${how}: another takes over in ${pauseMs} ms`);
    return pauseMs;
  }

  /** What was blocked gets another try. */
  forgive(): void {
    this.#blame.forgive();
  }

  /** No engine follows any more. */
  close(): void {
    clearTimeout(this.#healthyTimer);
  }

  #leaveCareLater(engine: EngineProcess): void {
    clearTimeout(this.#healthyTimer);
    this.#healthyTimer = setTimeout(() => this.#leaveCare(engine), HEALTHY_AFTER_MS).unref();
  }

  /** A careful engine that lives gives its place to an ordinary one. */
  #leaveCare(engine: EngineProcess): void {
    const { mountpoint, log, isInPlace, relieve } = this.#options;
    if (!isInPlace(engine)) return;
    // What an engine has died of before, perhaps, is not over yet.
    if (this.#blame.suspects(tasksIn(this.blackBox))) {
      this.#leaveCareLater(engine);
      return;
    }
    this.#blame.lives();
    log.info(mountpoint, 'the engine lives: an ordinary one takes its place');
    relieve();
  }
}
