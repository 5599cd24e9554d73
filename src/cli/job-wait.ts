/** Starting a job and, with `--wait`, staying until it ends, with a progress bar where someone looks. */
import type { Argv } from 'yargs';
import { BlockError } from '../base/block-error.ts';
import type { QmpClient } from '../control/client.ts';
import type { BlockJobInfo } from '../job/job.ts';
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
 * or, where that is no well-formed one, one that the engine gives, which is printed.
 */
export const runJob = async (
  { client, device }: MountedDevice,
  command: string,
  given: Readonly<Record<string, unknown>>,
  options: {
    readonly wait: boolean;
    /** As soon as the job is ready. */
    readonly complete?: boolean;
    readonly json: boolean;
  },
): Promise<number> => {
  // A job that ends at once leaves nothing to look at: events tell what came of it.
  const started = new Promise<string>((resolve) => {
    client.listen(({ event, data }) => {
      if (event === 'JOB_STATUS_CHANGE' && data['status'] === 'created')
        resolve(String(data['id']));
    });
  });
  const ended = outcomeOf(client, started);
  if (options.complete === true) completeWhenReady(client, started);
  await client.execute(command, { device, ...given });
  const id = await started;
  const outcome: Outcome = options.wait
    ? await watch(client, id, ended)
    : { id, status: 'started' };
  if (options.json) await printJson(outcome);
  else if (outcome.status !== 'failed') await print(`job ${id} ${outcome.status}\n`);
  if (outcome.status === 'failed') {
    const message = `job ${id} failed: ${outcome.error ?? 'no reason is known'}`;
    throw new BlockError({ kind: 'io', message });
  }
  return outcome.status === 'cancelled' ? EXIT.failure : EXIT.success;
};

// One that has ended in the meantime tells so itself.
const completeWhenReady = (client: QmpClient, started: Promise<string>): void => {
  client.listen(({ event, data }) => {
    if (event !== 'BLOCK_JOB_READY') return;
    void started.then(async (id) => {
      if (data['device'] !== id) return;
      await client.execute('job-complete', { id }).catch(() => undefined);
    });
  });
};

const outcomeOf = (client: QmpClient, started: Promise<string>): Promise<Outcome> =>
  new Promise((resolve) => {
    client.listen(({ event, data }) => {
      void started.then((id) => {
        if (data['device'] !== id) return;
        const { offset, len } = data as { offset: number; len: number };
        if (event === 'BLOCK_JOB_CANCELLED') resolve({ id, status: 'cancelled', offset, len });
        if (event !== 'BLOCK_JOB_COMPLETED') return;
        const error = data['error'];
        if (error === undefined) resolve({ id, status: 'completed', offset, len });
        else resolve({ id, status: 'failed', offset, len, error: String(error) });
      });
    });
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
    const lost = new Promise<never>((_, reject) => client.onClosed(reject));
    return await Promise.race([ended, lost]);
  } finally {
    clearInterval(timer);
    progress.stop();
  }
};
