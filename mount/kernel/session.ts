/**
 * The FUSE session: takes requests from the workers' ring, schedules them, and sends the replies.
 *
 * It owns which request lies in which slot. A request holds its slot while it is served; a view never has more than half
 * of them: its further requests are moved to buffers of their own and wait their turn, so a view whose image does not
 * answer does not slow the others.
 */
import { writeSync } from 'node:fs';
import { BlockError, toBlockError } from '../../src/base/block-error.ts';
import { endsWithin } from '../../src/base/bounded-wait.ts';
import { ERRNO } from '../../src/base/errno.ts';
import { idleWork } from '../../src/base/idle-work.ts';
import { addressOf } from '../../src/os/c-library.ts';
import { preferHugePages, yieldCore } from '../../src/os/process.ts';
import { COUNTER, createSharedCounters, sumCounter } from '../../src/translation/counters.ts';
import { createSharedSlots, type SharedSlots, SlotReceiver } from '../../src/translation/slots.ts';
import {
  createSharedTable,
  type SharedTable,
  SLICE_BYTES,
} from '../../src/translation/table-layout.ts';
import { TranslationTable } from '../../src/translation/translation-table.ts';
import type {
  Backend,
  BackendCounters,
  BackendOptions,
  KernelPages,
  ViewHolding,
} from '../backend.ts';
import { Latencies, type OperationLatency } from '../latencies.ts';
import { INIT2, OPCODE } from './abi.ts';
import { Answers } from './answers.ts';
import { Arrivals } from './arrivals.ts';
import { CarefulTurns, type TaskLog } from './careful-turns.ts';
import type { Handler, HandlerContext } from './context.ts';
import { Doorbell } from './doorbell.ts';
import { HandOver } from './hand-over.ts';
import { HANDLERS } from './handlers.ts';
import { HeldRequests } from './held-requests.ts';
import type { InitOutcome } from './init.ts';
import { Interrupts } from './interrupts.ts';
import { KernelLookups } from './kernel-lookups.ts';
import { NodeTranslations } from './node-translations.ts';
import { type Notifications, Notifier, resendRequest } from './notifier.ts';
import { OpenHandles } from './open-handles.ts';
import { Passthrough, type PassthroughOptions } from './passthrough.ts';
import { FuseRequest, type Region, regionOf } from './request.ts';
import { RequestQueue } from './request-queue.ts';
import { createSharedWatch } from './request-watch.ts';
import { runWorkers, type WorkerSetup } from './worker-pool.ts';

const SLOTS = 64;
const STUCK_WORKER_MS = 10_000;
/** A request that does not end, of a server that does not answer, is left to the next engine. */
const HOLD_PATIENCE_MS = 3000;

export interface KernelBackendOptions extends BackendOptions {
  readonly descriptor: number;
  readonly init: InitOutcome;
  /** 0 for the first engine of a mount. */
  readonly generation: number;
  /** Memory for translations, in bytes; 0 switches the table off, for comparison and debugging. */
  readonly tableBytes: number;
  /** See passthrough.ts; used where INIT has settled it. */
  readonly passthrough: Pick<PassthroughOptions, 'inherited' | 'changed'>;
  /** One request at a time, each recorded before it is served; null for an ordinary engine. */
  readonly tasks: TaskLog | null;
  /** In a rehearsal: what takes the place of threads that need a kernel. */
  readonly inPlaceOfThreads?: {
    /** See `runWorkers`. */
    readonly runWorkers: (setups: readonly WorkerSetup[]) => Promise<void>;
    readonly notifications: Notifications;
  };
}

export class KernelSession implements Backend {
  readonly name = 'kernel';
  readonly ended: Promise<void>;
  readonly holding: ViewHolding;
  readonly #options: KernelBackendOptions;
  readonly #slots: SharedSlots;
  readonly #receiver: SlotReceiver;
  readonly #arrivals: Arrivals;
  readonly #answers: Answers;
  readonly #regions: readonly Region[];
  readonly #doorbell: Doorbell;
  readonly #counters: SharedArrayBuffer;
  readonly #latencies: Latencies | null;
  readonly #notifier: Notifications;
  readonly #queue: RequestQueue;
  readonly #held: HeldRequests;
  readonly #context: HandlerContext;
  readonly #interrupts: Interrupts;
  readonly #lookups: KernelLookups;
  /** Of a careful engine; null of an ordinary one. */
  readonly #turns: CarefulTurns | null;
  #faults = 0;
  readonly #serving = new Set<FuseRequest>();
  #holding = false;
  #whenServed: (() => void) | null = null;
  #endPauses: () => void = () => undefined;

  constructor(options: KernelBackendOptions) {
    this.#options = options;
    const { descriptor, init, threads, directory, log } = options;
    this.#slots = createSharedSlots({ slots: SLOTS, payloadBytes: init.maxWriteBytes, addressOf });
    preferHugePages(new Uint8Array(this.#slots.memory));
    this.#receiver = new SlotReceiver(this.#slots);
    this.#arrivals = new Arrivals({
      receiver: this.#receiver,
      arrived: (slot) => this.#arrived(slot),
      isBusy: () => this.#serving.size > 0,
      noneLeft: () => this.#answers.flush(),
      doIdleWork: () => idleWork.doOne(),
      yieldCore,
      now: () => performance.now(),
    });
    this.#regions = regionsOf(this.#slots);
    this.#counters = createSharedCounters(threads);
    this.#latencies = options.measure ? new Latencies(threads) : null;
    this.#answers = this.#makeAnswers();
    const table = this.#sharedTable();
    this.#queue = new RequestQueue({
      perView: SLOTS / 2,
      // One slot for each worker to read into, and one more for each on its way.
      inSlots: SLOTS - 2 * threads,
      start: (request) => this.#begin(request),
      detach: (request) => this.#detach(request),
      refuse: (request, error) => this.#answers.refuse(request, error),
    });
    this.#lookups = new KernelLookups((nodeId) => directory.forgotten(nodeId));
    this.#context = this.#handlerContext(table);
    for (const { nodeId } of options.passthrough.inherited) {
      const entry = directory.byNodeId(nodeId);
      if (entry !== null) entry.view.isWrittenBeside = true;
    }
    this.#notifier = options.inPlaceOfThreads?.notifications ?? new Notifier(descriptor);
    directory.onNameChanged((name) => this.#notifier.nameChanged(name));
    this.#held = this.#heldRequests();
    this.#interrupts = new Interrupts({
      serving: this.#serving,
      removeWaiting: (low, high) =>
        this.#queue.removeWaiting(low, high) ?? this.#held.remove(low, high),
      refuse: (request, error) => this.#answers.refuse(request, error),
      write: (request, reply) => this.#answers.write(request, reply, 0, reply.length),
    });
    this.#turns = this.#carefulTurns();
    directory.onLost((nodeId) => this.#held.takeUp(nodeId, { fresh: false }));
    this.holding = new HandOver({
      held: this.#held,
      context: this.#context,
      serving: this.#serving,
      contentChanged: (nodeId, range) => this.#notifier.contentChanged(nodeId, range),
    });
    this.#doorbell = new Doorbell(() => this.#arrivals.rung());
    if (options.generation > 0 && (init.flags2 & INIT2.HAS_RESEND) !== 0)
      writeSync(descriptor, resendRequest());
    this.ended = this.#run(table).catch((error: unknown) => {
      log.error(options.mountpoint, `a worker has died: ${String(error)}`);
      throw error;
    });
  }

  get pages(): KernelPages {
    return {
      mayBeWritten: (nodeId) =>
        this.#context.handles.mayHoldDirtyPages(nodeId) ||
        this.#context.passthrough?.isUsed(nodeId) === true,
      isPassthrough: (nodeId) => this.#context.passthrough?.isUsed(nodeId) === true,
      invalidate: (nodeId) => this.#notifier.contentChanged(nodeId),
    };
  }

  async hold(): Promise<void> {
    this.#holding = true;
    this.#endPauses();
    if (this.#serving.size === 0) return;
    const served = new Promise<void>((resolve) => (this.#whenServed = resolve));
    await endsWithin(served, HOLD_PATIENCE_MS);
  }

  counters(): BackendCounters {
    const sum = (counter: number): number => sumCounter(this.#counters, counter);
    return {
      requests: sum(COUNTER.requests),
      readBytes: sum(COUNTER.readBytes) + this.#answers.readBytes,
      writtenBytes: sum(COUNTER.writtenBytes) + this.#answers.writtenBytes,
      faults: this.#faults,
      hits: sum(COUNTER.hits),
      tableBytes: this.#context.translations?.bytes ?? 0,
    };
  }

  latencies(): readonly OperationLatency[] {
    return this.#latencies?.all() ?? [];
  }

  async #run(table: SharedTable | null): Promise<void> {
    const { descriptor, threads, inPlaceOfThreads = { runWorkers } } = this.#options;
    const doorbell = this.#doorbell.writeEnd;
    const shared = {
      descriptor,
      doorbell,
      workers: threads,
      slots: this.#slots,
      counters: this.#counters,
      watch: createSharedWatch(),
      latencies: this.#latencies?.ofWorkers ?? null,
      table,
    };
    try {
      await inPlaceOfThreads.runWorkers(
        Array.from({ length: threads }, (_, worker) => ({
          worker,
          spliceOffset: new SharedArrayBuffer(8),
          ...shared,
        })),
      );
    } finally {
      this.#endPauses();
      this.#arrivals.takeRest();
      // Nobody waits for an answer any more.
      for (const { nodeId } of this.#serving)
        this.#options.directory.byNodeId(nodeId)?.view.letGo();
      await this.#allServed();
      await this.#notifier.close();
      this.#doorbell.close();
    }
  }

  /** Nothing is in flight, and nothing waits that is to start: only a careful engine's turns are left to the next one. */
  async #allServed(): Promise<void> {
    while (this.#serving.size > 0 || this.#queue.isStarting) {
      if (this.#serving.size > 0)
        await new Promise<void>((resolve) => (this.#whenServed = resolve));
      else await new Promise((resolve) => setImmediate(resolve));
    }
  }

  #sharedTable(): SharedTable | null {
    const { tableBytes, threads } = this.#options;
    const slots = Math.floor(tableBytes / SLICE_BYTES);
    return slots === 0 ? null : createSharedTable({ workers: threads, slots });
  }

  #handlerContext(table: SharedTable | null): HandlerContext {
    const { directory, log, readOnly, init, generation } = this.#options;
    const ending = new Promise<void>((resolve) => {
      this.#endPauses = resolve;
    });
    const stuck = (worker: number, waitedMs: number): void =>
      log.warning(
        this.#options.mountpoint,
        `worker ${worker} has been in one request for ${waitedMs} ms`,
      );
    const options = { reportAfterMs: STUCK_WORKER_MS, stuck };
    const passthrough = this.#passthrough();
    return {
      directory,
      log,
      readOnly,
      handles: new OpenHandles({ inherited: generation > 0 }),
      passthrough,
      translations:
        table === null
          ? null
          : new NodeTranslations(new TranslationTable(table, options), {
              workersSync: passthrough === null,
            }),
      maxTransferBytes: init.maxWriteBytes,
      release: (request) => this.#detach(request),
      remembered: (nodeId) => this.#lookups.add(nodeId),
      pause: async (ms) => !(await endsWithin(ending, ms)),
      starved: new Map(),
    };
  }

  #makeAnswers(): Answers {
    const { descriptor, mountpoint, log } = this.#options;
    return new Answers({
      descriptor,
      mountpoint,
      log,
      latencies: this.#latencies,
      release: (slot) => {
        this.#receiver.release(slot);
        this.#queue.leftSlot();
      },
      // A careful engine has told of nothing before it is told itself.
      mayWait: () => this.#arrivals.isTaking && this.#turns === null,
    });
  }

  // The queue goes on with the next one, which may be held as well: not from inside of itself.
  #heldRequests(): HeldRequests {
    return new HeldRequests({
      isHeld: (nodeId) => this.#options.directory.byNodeId(nodeId)?.view.isHeld === true,
      putAside: (request) => {
        this.#detach(request);
        queueMicrotask(() => this.#queue.ended(request));
      },
      fail: (request, error) => queueMicrotask(() => this.#fail(request, error)),
      failAside: (request, error) => this.#answers.refuse(request, error),
      again: (request) => this.#queue.again(request),
    });
  }

  #carefulTurns(): CarefulTurns | null {
    const { tasks } = this.#options;
    if (tasks === null) return null;
    return new CarefulTurns({
      tasks,
      nameOf: (nodeId) => this.#nameOf(nodeId),
      mayServe: () => !this.#holding,
      serve: (request) => this.#serve(request),
    });
  }

  #nameOf(nodeId: number): string {
    return this.#options.directory.byNodeId(nodeId)?.name ?? `node ${nodeId}`;
  }

  #passthrough(): Passthrough | null {
    const { init, descriptor, log, passthrough } = this.#options;
    if ((init.flags2 & INIT2.PASSTHROUGH) === 0) return null;
    return new Passthrough({ descriptor, log, ...passthrough });
  }

  #arrived(slot: number): void {
    this.#faults++;
    const region = this.#regions[slot];
    if (region === undefined) throw new RangeError(`slot ${slot}`);
    const request = new FuseRequest(region, slot);
    // Its slot is lost, as everything here is: the kernel repeats it to the next engine.
    if (this.#holding) return;
    switch (request.opcode) {
      case OPCODE.FORGET:
        this.#lookups.forget(request);
        this.#receiver.release(slot);
        return;
      case OPCODE.BATCH_FORGET:
        this.#lookups.forgetBatch(request);
        this.#receiver.release(slot);
        return;
      case OPCODE.INTERRUPT:
        this.#interrupts.arrived(request);
        this.#receiver.release(slot);
        return;
      default:
        this.#queue.add(request);
    }
  }

  #begin(request: FuseRequest): void {
    if (this.#holding || this.#held.takes(request)) return;
    if (this.#turns === null) this.#serve(request);
    else this.#turns.add(request);
  }

  #serve(request: FuseRequest): void {
    this.#serving.add(request);
    const handler = HANDLERS.get(request.opcode);
    if (handler === undefined) {
      this.#reply(request, ERRNO.ENOSYS, 0);
      return;
    }
    const outcome = this.#handled(request, handler);
    if (typeof outcome === 'number') this.#reply(request, 0, outcome);
    else {
      outcome?.then(
        (bodyBytes) => this.#reply(request, 0, bodyBytes),
        (error: unknown) => this.#fail(request, error),
      );
    }
  }

  /** Null: it has failed, and was answered. */
  #handled(request: FuseRequest, handler: Handler): number | Promise<number> | null {
    try {
      return handler(request, this.#context);
    } catch (error) {
      this.#fail(request, error);
      return null;
    }
  }

  #fail(request: FuseRequest, thrown: unknown): void {
    const error = toBlockError(thrown);
    if (this.#holding) {
      // It may have failed because this engine ends: the next one tries it again.
      this.#left(request);
      return;
    }
    if (!(thrown instanceof BlockError) || error.errno === 'EIO') {
      const name = this.#nameOf(request.nodeId);
      this.#options.log.error(name, `request ${request.opcode} failed: ${error.describe()}`);
    }
    this.#reply(request, error.errnoNumber, 0);
  }

  #reply(request: FuseRequest, errno: number, bodyBytes: number): void {
    if (this.#interrupts.takeAnswered(request)) this.#answers.wasAnswered(request);
    else this.#answers.send(request, errno, bodyBytes);
    this.#queue.ended(request);
    this.#turns?.ended(request);
    this.#left(request);
  }

  #left(request: FuseRequest): void {
    this.#serving.delete(request);
    if (this.#serving.size === 0) this.#whenServed?.();
  }

  #detach(request: FuseRequest): void {
    if (request.slot < 0) return;
    this.#receiver.release(request.detach());
    this.#queue.leftSlot();
  }
}

const regionsOf = (slots: SharedSlots): readonly Region[] =>
  Array.from({ length: slots.slots }, (_, slot) =>
    regionOf(
      new Uint8Array(slots.memory, slots.firstByte + slot * slots.slotBytes, slots.slotBytes),
    ),
  );
