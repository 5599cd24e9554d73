/**
 * The jobs of a mount, and which nodes each of them changes, or needs to stay as they are: a chain that one job copies from must
 * not be changed by another, but several may copy from one base.
 */
import { toBlockError } from '../base/block-error.ts';
import { endsWithin, GIVE_UP_MS } from '../base/bounded-wait.ts';
import type { Log } from '../base/log.ts';
import type { Node } from '../block/node.ts';
import { CopyMemory } from './copy-memory.ts';
import { Job, type JobFields } from './job.ts';
import { JobError } from './job-error.ts';
import type { BlockJobInfo, JobEventSink, JobType } from './job-info.ts';
import type { JobResult } from './job-store.ts';

/** More than anybody needs at once; a client that starts them in a loop is stopped. */
const MAX_JOBS = 1024;
/** For copies in flight of all jobs together. */
const COPY_MEMORY_BYTES = 64 << 20;

/** What a job does with nodes. */
export interface Claim {
  /** It changes their content, their place in the graph, or what is recorded of them: no other job may use them. */
  readonly nodes: readonly Node[];
  /** It reads them: no other job may change them. */
  readonly layers?: readonly Node[];
}

export interface StartOptions extends Omit<JobFields, 'emit' | 'copyMemory'>, Claim {
  /** What is in the store is enough to take it up again after it was ended at any moment. */
  readonly resumable?: boolean;
  /** Called when the job has begun, and on each change that a later engine should know of. */
  readonly changed?: (job: Job) => void;
  /** Resolves when what `changed` has told so far survives the engine; waited for five seconds. Never throws. */
  readonly kept?: () => Promise<void>;
  /** Called when the job is dismissed. */
  readonly dismissed?: (job: Job) => void;
}

export class JobList {
  readonly #jobs = new Map<string, Job>();
  readonly #owners = new Map<Node, Job>();
  readonly #readers = new Map<Node, Set<Job>>();
  readonly #resumable = new WeakSet<Job>();
  /** Of those that end because the engine does: what becomes of them. */
  readonly #outlooks = new WeakMap<Job, string>();
  readonly #listeners = new Set<JobEventSink>();
  readonly #copyMemory = new CopyMemory(COPY_MEMORY_BYTES);
  readonly #log: Log;
  #isClosed = false;
  #started = 0;
  #failed = 0;
  #nextNumber = 1;

  constructor(log: Log) {
    this.#log = log;
  }

  /** The mount ends, or its engine: jobs that are cancelled now go on in another one. */
  get isClosed(): boolean {
    return this.#isClosed;
  }

  get all(): readonly Job[] {
    return [...this.#jobs.values()];
  }

  /** Jobs that were begun here; not those that had ended under an earlier engine. */
  get started(): number {
    return this.#started;
  }

  /** Of them, those that have ended with an error and were not cancelled. */
  get failed(): number {
    return this.#failed;
  }

  get(id: string): Job | null {
    return this.#jobs.get(id) ?? null;
  }

  /** Events of all jobs; returns what ends that. */
  listen(sink: JobEventSink): () => void {
    this.#listeners.add(sink);
    return () => this.#listeners.delete(sink);
  }

  /** An id for a job that was started without one: the device's name, or `jobN` where that is no well-formed id. */
  idFor(requested: string | null, device: string): string {
    if (requested !== null) return requested;
    if (isWellFormed(device)) return device;
    while (this.#jobs.has(`job${this.#nextNumber}`)) this.#nextNumber++;
    return `job${this.#nextNumber++}`;
  }

  /** What `start` would refuse, before anything is opened or made for a job. */
  refuse(id: string, claim: Claim): void {
    this.#refuseClaimed(claim);
    this.#refuseId(id);
  }

  /** Errors: JobError for an id that is taken or not well formed, and for nodes that another job needs. */
  start(options: StartOptions): Job {
    const { id, changed, kept } = options;
    this.#refuseClaimed(options);
    const job = this.#add(options);
    this.#claim(job, options);
    if (options.resumable === true) this.#resumable.add(job);
    this.#started++;
    job.onChanged = () => changed?.(job);
    if (kept !== undefined) job.kept = () => this.#untilKept(id, kept);
    void job.concluded.then(() => {
      this.#giveUp(job, options);
      this.#report(job);
    });
    changed?.(job);
    void job.start().catch((error: unknown) => {
      this.#log.error(id, `the job broke: ${toBlockError(error).describe()}`);
    });
    return job;
  }

  /** A disk that hangs keeps neither a job nor its mount from their end. */
  async #untilKept(id: string, kept: () => Promise<void>): Promise<void> {
    if (await endsWithin(kept(), GIVE_UP_MS)) return;
    const waited = `its result is not kept after ${GIVE_UP_MS / 1000} s`;
    this.#log.warning(id, `${waited}: it begins again if the engine dies before that is written`);
  }

  /** One that ended under an earlier engine and was not dismissed yet. Errors: as `start`. */
  restore(options: Omit<StartOptions, 'nodes' | 'work'>, result: JobResult): Job {
    const work = { run: async () => undefined };
    const job = this.#add({ ...options, nodes: [], work });
    job.restoreConcluded(result);
    return job;
  }

  #add(options: StartOptions): Job {
    const { id, dismissed } = options;
    this.#refuseId(id);
    const job = new Job({
      ...options,
      copyMemory: this.#copyMemory,
      emit: (name, data) => this.#emit(name, data),
    });
    this.#jobs.set(id, job);
    job.onDismissed = () => {
      this.#jobs.delete(id);
      dismissed?.(job);
    };
    return job;
  }

  #refuseId(id: string): void {
    if (this.#isClosed) throw new JobError('The mount is ending');
    if (!isWellFormed(id)) throw new JobError(`Invalid job ID '${id}'`);
    if (this.#jobs.has(id)) throw new JobError(`Job ID '${id}' already in use`);
    if (this.#jobs.size >= MAX_JOBS) throw new JobError(`There are ${MAX_JOBS} jobs already`);
  }

  #claim(job: Job, { nodes, layers = [] }: Claim): void {
    for (const node of nodes) this.#owners.set(node, job);
    for (const node of layers) {
      const readers = this.#readers.get(node) ?? new Set();
      this.#readers.set(node, readers.add(job));
    }
  }

  #giveUp(job: Job, { nodes, layers = [] }: Claim): void {
    for (const node of nodes) if (this.#owners.get(node) === job) this.#owners.delete(node);
    for (const node of layers) {
      const readers = this.#readers.get(node);
      if (readers?.delete(job) === true && readers.size === 0) this.#readers.delete(node);
    }
  }

  /** The job that has a node, which is no layer below others, for itself; null for none. */
  claimOf(node: Node): Job | null {
    return this.#owners.get(node) ?? null;
  }

  /** What works on a node; nothing for null. */
  infoOf(node: Node | null): readonly BlockJobInfo[] {
    const job = node === null ? null : this.claimOf(node);
    return job === null ? [] : [job.blockJobInfo()];
  }

  /**
   * Ends all jobs because the engine does; what they have copied so far is kept, and so is what a later engine needs to take
   * them up. `mountEnds`: the engine is the last one, and what a later mount cannot go on with is cancelled. Never throws.
   */
  async close({ mountEnds }: { readonly mountEnds: boolean }): Promise<void> {
    this.#isClosed = true;
    const running = this.all.filter((job) => job.status !== 'concluded');
    for (const job of running) {
      if (mountEnds && endsWithMount(job.type)) this.#endWithMount(job);
      else this.#endForLater(job, mountEnds ? 'the next mount goes on' : 'the next engine goes on');
    }
    await Promise.all(running.map((job) => job.concluded));
  }

  /**
   * Ends the job on a node, which is about to be closed, so that it can be taken up again from the store. Errors: JobError
   * for a job that could not be; it goes on.
   */
  async suspend(node: Node): Promise<void> {
    const job = this.claimOf(node);
    if (job === null) return;
    if (!this.#resumable.has(job)) {
      const what = `job '${job.id}' (${job.type}) works on it and cannot be interrupted`;
      throw new JobError(`Node '${node.name}' (${node.path}) is busy: ${what}`);
    }
    const isForLater = this.#endForLater(job, 'it goes on when the image is active again');
    await job.concluded;
    if (isForLater) this.#jobs.delete(job.id);
  }

  /**
   * What the store has of it stays as it is, unless it completes all the same. False: it ends by itself, and that outcome is its
   * own.
   */
  #endForLater(job: Job, outlook: string): boolean {
    if (endsByItself(job)) return false;
    const { onChanged, onDismissed, kept } = job;
    job.onChanged = () => {
      if (hasCompleted(job)) onChanged();
    };
    job.onDismissed = () => {
      if (hasCompleted(job)) onDismissed();
    };
    job.kept = async () => {
      if (hasCompleted(job)) await kept();
    };
    this.#outlooks.set(job, outlook);
    cancel(job);
    return true;
  }

  /** Cancelled; the result stays in the store, so that the next mount can tell. */
  #endWithMount(job: Job): void {
    if (endsByItself(job)) return;
    job.onDismissed = () => undefined;
    this.#outlooks.set(job, 'cancelled, because the mount ends');
    cancel(job);
  }

  /** Errors: JobError while a job has the node for itself. */
  refuseClaim(node: Node): void {
    this.#refuse(node, this.#owners.get(node));
  }

  #refuseClaimed({ nodes, layers = [] }: Claim): void {
    for (const node of [...nodes, ...layers]) this.#refuse(node, this.#owners.get(node));
    for (const node of nodes) this.#refuse(node, this.#readers.get(node)?.values().next().value);
  }

  #refuse(node: Node, by: Job | undefined): void {
    if (by === undefined) return;
    const what = `Node '${node.name}' (${node.path}) is busy`;
    throw new JobError(`${what}: job '${by.id}' (${by.type}) uses it`);
  }

  #report(job: Job): void {
    const { offset, len, error } = job.blockJobInfo();
    const done = `${job.type}: ${offset} of ${len} bytes`;
    const outlook = this.#outlooks.get(job) ?? 'cancelled';
    // One that was cancelled too late has completed.
    if (job.isCancelled && error !== undefined) this.#log.info(job.id, `${outlook}, ${done}`);
    else if (error === undefined) this.#log.info(job.id, `completed, ${done}`);
    else {
      this.#failed++;
      this.#log.error(job.id, `failed, ${done}: ${error}`);
    }
  }

  #emit(...[name, data]: Parameters<JobEventSink>): void {
    for (const listener of this.#listeners) listener(name, data);
  }
}

/** No later mount can go on with it: what it copies is a moment that is over then. */
export const endsWithMount = (type: JobType): boolean => type === 'backup';

/** What comes of it is settled, whatever the engine does. */
const endsByItself = (job: Job): boolean =>
  job.isCancelled || job.status === 'aborting' || job.result !== null;

const hasCompleted = ({ result }: Job): boolean => result !== null && result.error === null;

const cancel = (job: Job): void => {
  try {
    job.cancel({ force: true });
  } catch {
    // It ends by itself.
  }
};

/** QEMU's `id_wellformed`: a letter, then letters, digits, `-`, `.`, `_`. */
export const isWellFormed = (id: string): boolean => /^[A-Za-z][A-Za-z0-9._-]*$/.test(id);
