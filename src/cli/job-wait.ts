/** Starting a job and, with `--wait`, staying until it ends, with a progress bar where someone looks. */
import type { Argv } from 'yargs';
import { BlockError } from '../base/block-error.ts';
import { type QmpClient, QmpError, type QmpEvent } from '../control/client.ts';
import type { BlockJobInfo } from '../job/job-info.ts';
import { isWellFormed } from '../job/job-list.ts';
import { EXIT } from './exit-codes.ts';
import type { MountedDevice } from './mounted-device.ts';
import { print, printJson } from './print.ts';
import { startProgress } from './progress.ts';

const LOOK_MS = 200;

export const declareWait = <T>(yargs: Argv<T>) =>
  yargs.option('wait', {
    type: 'boolean',
    default: false,
    describe: 'Stay until the job ends; exit status 1 when it failed',
  });

interface Outcome {
  readonly id: string;
  readonly status: 'started' | 'completed' | 'cancelled' | 'failed';
  readonly error?: string;
  readonly offset?: number;
  readonly len?: number;
}

/**
 * Runs a job-starting command on a device and tells what came of it; the exit status. The job's id is the device's name
 * or, where that is no well-formed one, the first `jobN` that is free, which is printed.
 */
export const runJob = async (
  mounted: MountedDevice,
  command: string,
  given: Readonly<Record<string, unknown>>,
  options: {
    readonly wait: boolean;
    /** As soon as the job is ready. */
    readonly complete?: boolean;
    readonly json: boolean;
  },
): Promise<number> => {
  const { client } = mounted;
  const job = new StartedJob(client, { complete: options.complete ?? false });
  const id = await start(job, mounted, command, given);
  const outcome: Outcome = options.wait
    ? await watch(client, id, job.ended)
    : { id, status: 'started' };
  if (options.json) await printJson(outcome);
  else if (outcome.status !== 'failed') await print(`job ${id} ${outcome.status}\n`);
  if (outcome.status === 'failed') {
    const message = `job ${id} failed: ${outcome.error ?? 'no reason is known'}`;
    throw new BlockError({ kind: 'io', message });
  }
  return outcome.status === 'cancelled' ? EXIT.failure : EXIT.success;
};

/** The id is chosen here: among events of other jobs that begin at the same time nothing else tells which one is ours. */
const start = async (
  job: StartedJob,
  { client, device }: MountedDevice,
  command: string,
  given: Readonly<Record<string, unknown>>,
): Promise<string> => {
  for (let number = 1; ; number++) {
    const isNamed = isWellFormed(device);
    const id = isNamed ? device : `job${number}`;
    job.expect(id);
    try {
      await client.execute(command, { device, 'job-id': id, ...given });
      return id;
    } catch (error) {
      const isTaken = error instanceof QmpError && error.message.includes(`'${id}' already in use`);
      if (isNamed || !isTaken) throw error;
    }
  }
};

/** Follows the events of one job. A job that ends at once leaves nothing else to look at. */
class StartedJob {
  readonly ended: Promise<Outcome>;
  #id: string | null = null;
  /** What came before was of another job with this id. */
  #isCreated = false;
  #end: (outcome: Outcome) => void = () => undefined;

  /** `complete`: as soon as it is ready. */
  constructor(client: QmpClient, { complete }: { readonly complete: boolean }) {
    this.ended = new Promise((resolve) => {
      this.#end = resolve;
    });
    client.listen((event) => {
      this.#follow(event);
      if (!complete || event.event !== 'BLOCK_JOB_READY' || !this.#isOurs(event)) return;
      // One that has ended in the meantime tells so itself.
      void client.execute('job-complete', { id: this.#id }).catch(() => undefined);
    });
  }

  /** The id of the job that is about to be started. */
  expect(id: string): void {
    this.#id = id;
    this.#isCreated = false;
  }

  #isOurs({ data }: QmpEvent): boolean {
    return this.#isCreated && data['device'] === this.#id;
  }

  #follow(happened: QmpEvent): void {
    const { event, data } = happened;
    const id = this.#id;
    if (id === null) return;
    if (event === 'JOB_STATUS_CHANGE' && data['id'] === id && data['status'] === 'created') {
      this.#isCreated = true;
    }
    if (!this.#isOurs(happened)) return;
    const { offset, len } = data as { offset: number; len: number };
    if (event === 'BLOCK_JOB_CANCELLED') this.#end({ id, status: 'cancelled', offset, len });
    if (event !== 'BLOCK_JOB_COMPLETED') return;
    const error = data['error'];
    if (error === undefined) this.#end({ id, status: 'completed', offset, len });
    else this.#end({ id, status: 'failed', offset, len, error: String(error) });
  }
}

/** The engine was exchanged, has died, or the mount has ended: the job is not lost with it. */
const gone = (id: string, cause: BlockError): BlockError =>
  new BlockError({
    kind: 'io',
    errno: 'ECONNRESET',
    message: `the engine has gone away while job ${id} ran`,
    hint: "'vdiskfs jobs' tells how it goes on with the next one",
    cause,
  });

const watch = async (client: QmpClient, id: string, ended: Promise<Outcome>): Promise<Outcome> => {
  const progress = await startProgress(id);
  const timer = setInterval(() => {
    void client.execute('query-block-jobs').then(
      (jobs) => {
        const job = (jobs as readonly BlockJobInfo[]).find((j) => j.device === id);
        if (job !== undefined && job.len > 0) progress.update(job.offset, job.len);
      },
      () => undefined,
    );
  }, LOOK_MS);
  try {
    const lost = new Promise<never>((_, reject) =>
      client.onClosed((error) => reject(gone(id, error))),
    );
    return await Promise.race([ended, lost]);
  } finally {
    clearInterval(timer);
    progress.stop();
  }
};
