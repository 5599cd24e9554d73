/**
 * The supervisor: owns what must outlive an engine (the FUSE descriptor, the mount, the image locks, the node ids),
 * starts a new engine when one dies, and ends the mount. It opens no image content.
 *
 * States: starting → serving → (engine dies: starting again) → ended. `stop` unmounts; the engine then finds the mount
 * gone, flushes and exits, and the supervisor follows. An unmount from outside takes the same way.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, readSync, writeFileSync, writeSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { INIT2 } from '../../mount/kernel/abi.ts';
import { answerInit, type InitOutcome } from '../../mount/kernel/init.ts';
import type { PassthroughUse } from '../../mount/kernel/passthrough.ts';
import { BlockError, toBlockError } from '../base/block-error.ts';
import type { Log } from '../base/log.ts';
import { type ImageLock, type ImageLocks, noLocks } from '../block/image-locks.ts';
import { QemuLocks } from '../block/qemu-locks.ts';
import { becomeIoFlusher } from '../os/linux.ts';
import { describeHolders, holdersOf } from './holders.ts';
import type { EngineConfig, EngineMessage, SupervisorMessage } from './messages.ts';
import { mountedAt } from './mount-table.ts';
import { FILE_SYSTEM_TYPE, mountFuse, unmountFuse } from './mounting.ts';
import { NodeIds } from './node-ids.ts';
import type { Service } from './service.ts';
import { Watchdog } from './watchdog.ts';

/** Where the engine finds the FUSE descriptor among its own: after stdin, stdout, stderr and the channel. */
const ENGINE_FUSE_DESCRIPTOR = 4;
/** Four fdatasyncs at once froze everything else with the default of 4. */
const IO_THREADS = 32;
const READ_AHEAD_KIB = 2048;
const INIT_REQUEST_BYTES = 8192 + 4096;
/** An engine that dies sooner than this after its start is not started again at once. */
const HEALTHY_AFTER_MS = 5000;
const FIRST_RESTART_MS = 100;
const LAST_RESTART_MS = 10_000;

export type SupervisorConfig = Omit<EngineConfig, 'fuse' | 'generation' | 'passthroughUses'>;

export interface Ready {
  readonly warnings: readonly string[];
}

interface Running {
  readonly child: ChildProcess;
  readonly startedMs: number;
  unmounted: boolean;
}

export class Supervisor {
  /** Resolves when the mount has ended and everything is given back. */
  readonly ended: Promise<void>;
  readonly #config: SupervisorConfig;
  readonly #log: Log;
  readonly #service: Service;
  #watchdog: Watchdog | null = null;
  readonly #nodeIds = new NodeIds();
  readonly #locks: ImageLocks;
  /** Locks by number; those of an engine that died are kept until the next one is ready. */
  readonly #held = new Map<number, { readonly lock: ImageLock; readonly generation: number }>();
  /** By node id. */
  readonly #passthroughUses = new Map<number, PassthroughUse>();
  #nextLock = 1;
  #fuse: { readonly descriptor: number; readonly init: InitOutcome } | null = null;
  #engine: Running | null = null;
  #generation = 0;
  #deaths = 0;
  #stops = 0;
  #firstReady: ((ready: Ready | BlockError) => void) | null = null;
  #end: () => void = () => undefined;

  constructor(config: SupervisorConfig, log: Log, service: Service) {
    this.#config = config;
    this.#log = log;
    this.#service = service;
    this.#locks = config.lock === 'off' ? noLocks : new QemuLocks({ require: config.lock, log });
    this.ended = new Promise((resolve) => {
      this.#end = resolve;
    });
  }

  /** Mounts and starts the first engine. Errors: what mounting or that engine says; nothing is left mounted then. */
  async start(): Promise<Ready> {
    protectFromPressure(this.#log);
    const { sourceLabel: source, mountpoint, readOnly, allowOther, backend } = this.#config;
    if (backend === 'kernel') {
      const flags = this.#config.mountFlags;
      const descriptor = await mountFuse({ source, mountpoint, readOnly, allowOther, flags });
      try {
        this.#fuse = { descriptor, init: handshake(descriptor, this.#config.passthrough) };
        widenReadAhead(mountpoint, this.#log);
        this.#warnWithoutPassthrough();
      } catch (error) {
        closeSync(descriptor);
        throw error;
      }
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
    await this.#unmountIfMounted();
    this.#finish();
    throw outcome;
  }

  /** SIGTERM: unmounts. A busy mount goes on, and says who holds it; asked again, it is detached from the tree. */
  async stop(): Promise<void> {
    this.#stops++;
    const { mountpoint } = this.#config;
    if (!this.#isMounted()) {
      this.#log.info(
        mountpoint,
        'is not mounted any more: it ends when its last open file is closed',
      );
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

  #watch(): void {
    const { watchdogMs } = this.#service;
    if (watchdogMs === null) return;
    this.#watchdog = new Watchdog({
      patienceMs: watchdogMs,
      ask: () => this.#send({ type: 'ping' }),
      alive: () => this.#service.alive(),
    });
  }

  #warnWithoutPassthrough(): void {
    const { passthrough, mountpoint } = this.#config;
    if (!passthrough || ((this.#fuse?.init.flags2 ?? 0) & INIT2.PASSTHROUGH) !== 0) return;
    const text = 'this kernel has no passthrough (Linux 6.9 has): views are served without it';
    this.#log.warning(mountpoint, text);
  }

  #startEngine(): void {
    const program = fileURLToPath(new URL('./engine.js', import.meta.url));
    const stdio = [
      'ignore',
      'inherit',
      'inherit',
      'ipc',
      this.#fuse?.descriptor ?? 'ignore',
    ] as const;
    const child = spawn(process.execPath, [program], {
      stdio: [...stdio],
      serialization: 'advanced',
      env: { ...process.env, UV_THREADPOOL_SIZE: String(IO_THREADS) },
    });
    const running: Running = { child, startedMs: Date.now(), unmounted: false };
    this.#engine = running;
    child.on('message', (message: EngineMessage) => void this.#received(running, message));
    child.once('error', (error) => this.#engineFailed(toBlockError(error, { op: 'start engine' })));
    child.once('exit', (code, signal) => this.#engineEnded(running, code, signal));
    const fuse = this.#fuse === null ? null : { ...this.#fuse, descriptor: ENGINE_FUSE_DESCRIPTOR };
    const passthroughUses = [...this.#passthroughUses.values()];
    const config = { ...this.#config, fuse, generation: this.#generation, passthroughUses };
    this.#send({ type: 'start', config });
  }

  async #received(running: Running, message: EngineMessage): Promise<void> {
    switch (message.type) {
      case 'ready':
        this.#dropLocksBefore(this.#generation);
        this.#firstReady?.({ warnings: message.warnings });
        this.#firstReady = null;
        return;
      case 'failed':
        this.#engineFailed(BlockError.fromWire(message.error));
        return;
      case 'node-ids':
        this.#send({
          type: 'node-ids',
          request: message.request,
          ids: this.#nodeIds.idsFor(message.keys),
        });
        return;
      case 'lock':
        await this.#lock(message);
        return;
      case 'unlock':
        await this.#held.get(message.lock)?.lock.release();
        this.#held.delete(message.lock);
        return;
      case 'passthrough':
        if (message.use.handles > 0) this.#passthroughUses.set(message.use.nodeId, message.use);
        else this.#passthroughUses.delete(message.use.nodeId);
        return;
      case 'pong':
        this.#watchdog?.answered();
        return;
      case 'quit':
        await this.stop();
        return;
      case 'unmounted':
        running.unmounted = true;
    }
  }

  async #lock(message: Extract<EngineMessage, { type: 'lock' }>): Promise<void> {
    const { request, path, mode } = message;
    const generation = this.#generation;
    try {
      const lock = await this.#locks.acquire(path, mode);
      const number = this.#nextLock++;
      this.#held.set(number, { lock, generation });
      this.#send({ type: 'lock', request, lock: number });
    } catch (error) {
      this.#send({ type: 'lock-failed', request, error: toBlockError(error).toWire() });
    }
  }

  #engineFailed(error: BlockError): void {
    if (this.#firstReady === null) this.#log.error(this.#config.mountpoint, error.describe());
    this.#firstReady?.(error);
    this.#firstReady = null;
  }

  #engineEnded(running: Running, code: number | null, signal: NodeJS.Signals | null): void {
    this.#engine = null;
    const { mountpoint } = this.#config;
    if (this.#firstReady !== null) {
      this.#engineFailed(
        new BlockError({ kind: 'io', message: `the engine ended with ${signal ?? code}` }),
      );
      return;
    }
    if (running.unmounted || !this.#isMounted()) {
      if (code !== 0) this.#log.error(mountpoint, `the last engine ended with ${signal ?? code}`);
      this.#finish();
      return;
    }
    const lived = Date.now() - running.startedMs;
    this.#deaths = lived > HEALTHY_AFTER_MS ? 1 : this.#deaths + 1;
    const pauseMs =
      this.#deaths === 1 ? 0 : Math.min(LAST_RESTART_MS, FIRST_RESTART_MS * 2 ** this.#deaths);
    this.#log.error(
      mountpoint,
      `the engine ended with ${signal ?? code}: starting another in ${pauseMs} ms`,
    );
    this.#generation++;
    setTimeout(() => void this.#restart(), pauseMs);
  }

  async #restart(): Promise<void> {
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
    if (this.#fuse !== null) closeSync(this.#fuse.descriptor);
    this.#fuse = null;
    for (const { lock } of this.#held.values()) void lock.release();
    this.#held.clear();
    this.#watchdog?.close();
    this.#service.stopping();
    void this.#service.flushed().then(() => this.#end());
  }

  #dropLocksBefore(generation: number): void {
    for (const [number, held] of this.#held) {
      if (held.generation >= generation) continue;
      void held.lock.release();
      this.#held.delete(number);
    }
  }

  /** False: there is no engine to hear it. */
  #send(message: SupervisorMessage): boolean {
    const child = this.#engine?.child;
    if (child?.connected !== true) return false;
    child.send(message, () => undefined);
    return true;
  }
}

/** Reads INIT, which the kernel sends first and at once, and answers it. */
const handshake = (descriptor: number, passthrough: boolean): InitOutcome => {
  const request = new Uint8Array(INIT_REQUEST_BYTES);
  const length = readSync(descriptor, request);
  const withhold = process.env['VDISKFS_WITHHOLD_INIT'] ?? '';
  const { outcome, bytes } = answerInit(request.subarray(0, length), { withhold, passthrough });
  writeSync(descriptor, bytes);
  return outcome;
};

// The kernel reads 128 KiB ahead of a sequential reader on FUSE, a quarter of what one request may carry.
const widenReadAhead = (mountpoint: string, log: Log): void => {
  try {
    const device = mountedAt(mountpoint)?.device ?? '';
    writeFileSync(`/sys/class/bdi/${device}/read_ahead_kb`, String(READ_AHEAD_KIB));
  } catch (error) {
    log.debug(mountpoint, `read-ahead stays as it is: ${String(error)}`);
  }
};

// ext4 on a loop device on a view can fill the machine's dirty limit, and our own writes would wait for themselves.
const protectFromPressure = (log: Log): void => {
  try {
    if (!becomeIoFlusher()) return;
    writeFileSync('/proc/self/oom_score_adj', '-500');
  } catch (error) {
    log.debug('supervisor', `no protection from memory pressure: ${String(error)}`);
  }
};
