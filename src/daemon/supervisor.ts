/**
 * The supervisor: owns the mount, its FUSE descriptor and what else must outlive an engine (inheritance.ts), starts a new
 * engine when one dies (succession.ts says how and when), and ends the mount. It opens no image content.
 *
 * States: starting → serving → (engine dies, or hands over: the next one takes its place) → ended. `stop` unmounts; the
 * engine then finds the mount gone, flushes and exits, and the supervisor follows. An unmount from outside takes the same
 * way. What outlives the supervisor itself is in kept-state.ts.
 */
import { closeSync } from 'node:fs';
import { dirname } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { INIT2 } from '../../mount/kernel/abi.ts';
import type { InitOutcome } from '../../mount/kernel/init.ts';
import { BlockError, toBlockError } from '../base/block-error.ts';
import { endsWithin } from '../base/bounded-wait.ts';
import type { Log } from '../base/log.ts';
import { EngineProcess } from './engine-process.ts';
import { describeHolders, holdersOf } from './holders.ts';
import { Inheritance } from './inheritance.ts';
import { KeptState, type TakenOver } from './kept-state.ts';
import { protectFromPressure } from './memory-pressure.ts';
import type { EngineConfig, EngineMessage } from './messages.ts';
import { handshake, makeRuntimeDirectories, widenReadAhead } from './mount-preparation.ts';
import { FILE_SYSTEM_TYPE, mountedAt } from './mount-table.ts';
import { mountFuse, unmountFuse } from './mounting.ts';
import { identify, isAlive } from './process-identity.ts';
import { removeRehearsal } from './rehearsal-place.ts';
import type { Service } from './service.ts';
import { SpareEngine } from './spare-engine.ts';
import { Succession } from './succession.ts';
import { Watchdog } from './watchdog.ts';

const OLD_ENGINE_POLL_MS = 10;
const LOAD_PATIENCE_MS = 60_000;
/** An engine that hands over and does not come to an end is killed: it may be at any time. */
const HAND_OVER_PATIENCE_MS = 20_000;
/** An engine has closed all images, and its exit waits for its threads: one may be in a call that a host's disk never answers. */
const EXIT_PATIENCE_MS = 5000;

export type SupervisorConfig = Omit<
  EngineConfig,
  'fuse' | 'generation' | 'passthroughUses' | 'activityChanges' | 'standIns' | 'careful' | 'blocked'
>;

export interface SupervisorScene {
  readonly log: Log;
  readonly service: Service;
  /** What an earlier supervisor of the mount has left. */
  readonly taken: TakenOver | null;
  /** It has been started already. */
  readonly firstEngine: EngineProcess | null;
}

export interface Ready {
  readonly warnings: readonly string[];
}

export class Supervisor {
  /** Resolves when the mount has ended and everything is given back. */
  readonly ended: Promise<void>;
  readonly #config: SupervisorConfig;
  readonly #log: Log;
  readonly #service: Service;
  readonly #taken: TakenOver | null;
  readonly #inheritance: Inheritance;
  readonly #succession: Succession;
  #watchdog: Watchdog | null = null;
  #kept: KeptState | null = null;
  #fuse: { readonly descriptor: number; readonly init: InitOutcome } | null = null;
  #engine: EngineProcess | null = null;
  readonly #spare: SpareEngine;
  #generation: number;
  #stops = 0;
  #firstReady: ((ready: Ready | BlockError) => void) | null = null;
  /** Of a restart that is under way. */
  #restarted: (() => void) | null = null;
  #isEnding = false;
  #end: () => void = () => undefined;

  constructor(config: SupervisorConfig, scene: SupervisorScene) {
    const { log, service, taken, firstEngine } = scene;
    this.#config = config;
    this.#spare = new SpareEngine(() => this.#attend(new EngineProcess()), firstEngine);
    if (firstEngine !== null) this.#attend(firstEngine);
    this.#log = log;
    this.#service = service;
    this.#taken = taken;
    this.#succession = new Succession({
      mountpoint: config.mountpoint,
      log,
      blocked: (text) => service.status(text),
      isInPlace: (engine) => this.#engine === engine && !this.#isEnding && !engine.handsOver,
      relieve: () => this.#handOver(),
    });
    this.#generation = taken === null ? 0 : taken.generation + 1;
    this.#inheritance = new Inheritance({
      lock: config.lock,
      log,
      taken,
      kept: () => this.#kept,
    });
    this.ended = new Promise((resolve) => {
      this.#end = resolve;
    });
  }

  /**
   * Mounts, or takes over, and starts an engine. Errors: what mounting or that engine says; nothing is left mounted then,
   * but for a mount that was taken over: whoever uses it waits for the next try.
   */
  async start(): Promise<Ready> {
    protectFromPressure(this.#log);
    const { mountpoint, backend } = this.#config;
    try {
      if (this.#taken !== null) await this.#goOn(this.#taken);
      else if (backend === 'kernel') await this.#mount();
    } catch (error) {
      await this.#spare.close();
      throw error;
    }
    const outcome = await new Promise<Ready | BlockError>((resolve) => {
      this.#firstReady = resolve;
      this.#startEngine();
    });
    if (!(outcome instanceof BlockError)) {
      this.#service.ready(`serving ${mountpoint}`);
      this.#watch();
      return outcome;
    }
    if (this.#taken === null) {
      await this.#unmountIfMounted();
      this.#finish();
    }
    throw outcome;
  }

  /** SIGTERM: unmounts. A busy mount goes on, and says who holds it; asked again, it is detached from the tree. */
  async stop(): Promise<void> {
    this.#stops++;
    const { mountpoint } = this.#config;
    if (!this.#isMounted()) {
      this.#log.info(mountpoint, 'is unmounted already: it ends with its last open file');
      return;
    }
    try {
      await unmountFuse(mountpoint, { lazy: this.#stops > 1 });
    } catch (error) {
      const failure = toBlockError(error);
      const holders =
        failure.kind === 'busy' ? describeHolders(await holdersOf(mountpoint)) : failure.describe();
      this.#log.error(mountpoint, `still mounted: ${holders}; ask again to detach it`);
      this.#service.status(`still mounted: ${holders}`);
    }
  }

  /**
   * Swaps the engine for the installed version of it, without unmounting: the new one is loaded first, then the old one
   * finishes what is in flight, flushes and closes. What was blocked gets another try. Errors: why the engine stays.
   */
  async restart(): Promise<void> {
    const { mountpoint } = this.#config;
    const refuse = (message: string): never => {
      throw new BlockError({ kind: 'busy', message, path: mountpoint, op: 'restart' });
    };
    if (this.#fuse === null) refuse('the backend fuse-native cannot be restarted');
    if (((this.#fuse?.init.flags2 ?? 0) & INIT2.HAS_RESEND) === 0)
      refuse('this kernel does not repeat requests (Linux 6.9 does): unmount and mount it again');
    if (this.#restarted !== null || this.#engine?.ready !== true || this.#isEnding)
      refuse('its engine is being replaced already');
    const next = this.#spare.renew();
    if (!((await endsWithin(next.loaded, LOAD_PATIENCE_MS)) && (await next.loaded))) {
      this.#spare.drop();
      refuse('the installed version does not start, or speaks another protocol: unmount and mount');
    }
    this.#succession.forgive();
    const done = new Promise<void>((resolve) => {
      this.#restarted = resolve;
    });
    this.#handOver();
    await done;
  }

  async #mount(): Promise<void> {
    const { sourceLabel: source, mountpoint, readOnly, allowOther, mountFlags } = this.#config;
    const flags = mountFlags;
    const descriptor = await mountFuse({ source, mountpoint, readOnly, allowOther, flags });
    try {
      this.#fuse = { descriptor, init: handshake(descriptor, this.#config.passthrough) };
      this.#kept = KeptState.begin(this.#service, { mountpoint, fuse: this.#fuse });
      widenReadAhead(mountpoint, this.#log);
      this.#warnWithoutPassthrough();
    } catch (error) {
      this.#fuse = null;
      closeSync(descriptor);
      throw error;
    }
  }

  async #goOn(taken: TakenOver): Promise<void> {
    // It was told to die with its supervisor; never two engines on one descriptor.
    const { engine } = taken;
    while (engine !== null && isAlive(engine)) {
      process.kill(engine.pid, 'SIGKILL');
      await sleep(OLD_ENGINE_POLL_MS);
    }
    this.#fuse = taken.fuse;
    this.#kept = KeptState.goOn(this.#service, taken);
    this.#inheritance.adoptLocks(taken.locks);
    this.#log.info(
      this.#config.mountpoint,
      `taken over from an earlier supervisor, engine ${this.#generation}`,
    );
  }

  #watch(): void {
    const { watchdogMs } = this.#service;
    if (watchdogMs === null) return;
    this.#watchdog = new Watchdog({
      patienceMs: watchdogMs,
      ask: () => this.#engine?.send({ type: 'ping' }) ?? false,
      alive: () => this.#service.alive(),
    });
  }

  #warnWithoutPassthrough(): void {
    const { passthrough, mountpoint } = this.#config;
    if (!passthrough || ((this.#fuse?.init.flags2 ?? 0) & INIT2.PASSTHROUGH) !== 0) return;
    const text = 'this kernel has no passthrough (Linux 6.9 has): views are served without it';
    this.#log.warning(mountpoint, text);
  }

  #attend(engine: EngineProcess): EngineProcess {
    engine.listen({
      received: (message) => void this.#received(engine, message),
      ended: (how) => this.#engineEnded(engine, how),
      failed: (error) => {
        if (engine === this.#engine) this.#engineFailed(error);
      },
    });
    return engine;
  }

  #startEngine(): void {
    const engine = this.#spare.take() ?? this.#attend(new EngineProcess());
    this.#engine = engine;
    const next = this.#succession.next();
    makeRuntimeDirectories(this.#config, this.#log);
    removeRehearsal(dirname(this.#config.journalDirectory));
    this.#kept?.engineBegins(this.#generation, identify(engine.pid));
    engine.begin(
      {
        ...this.#config,
        generation: this.#generation,
        ...this.#inheritance.forNext,
        ...next,
      },
      { fuse: this.#fuse, blackBox: this.#succession.blackBox },
    );
    void engine.loaded.then((speaksOurs) => {
      if (!speaksOurs) engine.kill();
    });
    if (this.#fuse !== null) this.#spare.startLater();
  }

  async #received(engine: EngineProcess, message: EngineMessage): Promise<void> {
    switch (message.type) {
      case 'ready':
        this.#engineReady(engine);
        this.#firstReady?.({ warnings: message.warnings });
        this.#firstReady = null;
        return;
      case 'failed':
        this.#engineFailed(BlockError.fromWire(message.error));
        return;
      case 'node-ids':
      case 'lock':
      case 'unlock':
      case 'passthrough':
      case 'activity':
      case 'stand-ins':
        await this.#inheritance.answer(engine, message, this.#generation);
        return;
      case 'pong':
        this.#watchdog?.answered();
        return;
      case 'quit':
        await this.stop();
        return;
      case 'handed-over':
        engine.kill();
        // Another engine opens the targets: what still writes to one ends before.
        if (message.targetsClosed) this.#leaveLater(engine);
        return;
      case 'unmounted':
        engine.unmounted = true;
        this.#leaveLater(engine);
    }
  }

  #engineReady(engine: EngineProcess): void {
    engine.ready = true;
    this.#inheritance.served(this.#generation);
    this.#restarted?.();
    this.#restarted = null;
    this.#succession.serves(engine);
  }

  #handOver(): void {
    const engine = this.#engine;
    if (engine === null) return;
    engine.handsOver = true;
    engine.send({ type: 'hand-over' });
    setTimeout(() => engine.kill(), HAND_OVER_PATIENCE_MS).unref();
  }

  #leaveLater(engine: EngineProcess): void {
    setTimeout(() => this.#leave(engine), EXIT_PATIENCE_MS).unref();
  }

  #leave(engine: EngineProcess): void {
    if (this.#engine !== engine) return;
    const what = `engine ${engine.pid} has closed all images, but does not exit`;
    this.#log.warning(this.#config.mountpoint, `${what}: a call to the host hangs; it is killed`);
    engine.kill();
    this.#engine = null;
    if (engine.unmounted || !this.#isMounted()) {
      this.#finish();
      return;
    }
    this.#generation++;
    void this.#replace();
  }

  #engineFailed(error: BlockError): void {
    if (this.#firstReady === null) this.#log.error(this.#config.mountpoint, error.describe());
    this.#firstReady?.(error);
    this.#firstReady = null;
  }

  #engineEnded(engine: EngineProcess, how: string): void {
    this.#spare.ended(engine);
    if (this.#engine !== engine) return;
    this.#engine = null;
    const { mountpoint } = this.#config;
    if (this.#firstReady !== null) {
      this.#engineFailed(new BlockError({ kind: 'io', message: `the engine ended with ${how}` }));
      return;
    }
    if (engine.unmounted || !this.#isMounted()) {
      if (how !== '0' && !engine.handsOver)
        this.#log.error(mountpoint, `the last engine ended with ${how}`);
      this.#finish();
      return;
    }
    this.#generation++;
    if (engine.handsOver) void this.#replace();
    else setTimeout(() => void this.#replace(), this.#succession.died(engine, how));
  }

  async #replace(): Promise<void> {
    // Without the kernel backend the mount went with the engine, and what is left of it is in the way of the next.
    if (this.#fuse === null)
      await unmountFuse(this.#config.mountpoint, { lazy: true }).catch(() => undefined);
    else if (!this.#isMounted()) {
      this.#finish();
      return;
    }
    this.#startEngine();
  }

  #isMounted(): boolean {
    return mountedAt(this.#config.mountpoint)?.type === FILE_SYSTEM_TYPE;
  }

  async #unmountIfMounted(): Promise<void> {
    if (!this.#isMounted()) return;
    await unmountFuse(this.#config.mountpoint, { lazy: true }).catch((error: unknown) => {
      this.#log.error(this.#config.mountpoint, toBlockError(error).describe());
    });
  }

  #finish(): void {
    if (this.#isEnding) return;
    this.#isEnding = true;
    removeRehearsal(dirname(this.#config.journalDirectory));
    this.#succession.close();
    const spareEnded = this.#spare.close();
    this.#kept?.close();
    if (this.#fuse !== null) closeSync(this.#fuse.descriptor);
    this.#fuse = null;
    this.#inheritance.releaseLocks();
    this.#watchdog?.close();
    this.#restarted?.();
    this.#service.stopping();
    void Promise.all([this.#service.flushed(), spareEnded]).then(() => this.#end());
  }
}
