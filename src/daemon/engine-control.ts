/** What works behind the control socket: its commands, the jobs, and what goes on by itself. */
import { toBlockError } from '../base/block-error.ts';
import { endsWithin, GIVE_UP_MS } from '../base/bounded-wait.ts';
import type { Log } from '../base/log.ts';
import type { ImageLocks } from '../block/image-locks.ts';
import type { DriverRegistry } from '../block/registry.ts';
import type { Secrets } from '../block/secrets.ts';
import type { ControlContext } from '../control/context.ts';
import { createMonitor } from '../control/monitor.ts';
import type { Monitor } from '../control/server.ts';
import { type ControlSource, controlContext, streamAll } from './control-context.ts';
import { takeUpJobs } from './job-take-up.ts';
import { JobTargets } from './job-targets.ts';
import type { EngineConfig } from './messages.ts';
import { prefetchAll } from './read-records.ts';

/** Fetching and streams wait for jobs no longer than this. */
const JOBS_PATIENCE_MS = 2000;

export interface ControlScene extends Omit<ControlSource, 'targets'> {
  readonly registry: DriverRegistry;
  readonly locks: ImageLocks;
  readonly secrets: Secrets;
}

export interface Control {
  readonly monitor: Monitor;
  /** Every job that goes on does; never rejects. */
  readonly takenUp: Promise<void>;
  /** Ends the jobs, keeping what a later engine needs to go on. Never rejects. */
  close(how: { readonly mountEnds: boolean }): Promise<Ending>;
}

/** What still ends when the jobs have. */
export interface Ending {
  /** Whether targets are closed; false when one was given up because it does not answer. Never rejects. */
  readonly targetsClosed: Promise<boolean>;
}

/** Takes up jobs, then fetches and streams as the mount is to. */
export const beginControl = (scene: ControlScene): Control => {
  const { config, graph, catalog, registry, locks, secrets, log } = scene;
  const { backingDirectories, mountpoint } = config;
  const targets = new JobTargets({
    graph,
    catalog,
    registry,
    locks,
    secrets,
    log,
    backingDirectories,
    mountpoint,
  });
  const context = controlContext({ ...scene, targets });
  const takenUp =
    config.resume || config.generation > 0 ? takeUpJobs(context, log) : Promise.resolve();
  const ending = new AbortController();
  const populated = endsWithin(takenUp, JOBS_PATIENCE_MS).then(() =>
    populate(context, config, ending.signal, log),
  );
  return {
    monitor: createMonitor(context),
    takenUp,
    close: async (how) => {
      ending.abort();
      await context.jobs.close(how);
      // Neither starts one any more: what still waits for a server, or a disk, finds no list of jobs that takes one.
      const isTakenUp = await endsWithin(Promise.all([takenUp, populated]), GIVE_UP_MS);
      if (!isTakenUp) {
        const what = 'those that go on, or begin with the mount,';
        const outlook = 'the next engine, or mount, tries again';
        log.warning(
          'jobs',
          `${what} are still being started after ${GIVE_UP_MS / 1000} s: ${outlook}`,
        );
      }
      if (!(await endsWithin(context.store.settled(), GIVE_UP_MS))) {
        log.warning(
          config.stateDirectory,
          'does not answer: what was last told of jobs is not kept',
        );
      }
      // Who is still opening one may have asked the host to write to it.
      const targetsClosed = targets.close().then(
        (areClosed) => areClosed && isTakenUp,
        (error: unknown) => {
          log.error('targets', toBlockError(error).describe());
          return false;
        },
      );
      return { targetsClosed };
    },
  };
};

/** `--prefetch`, then `--stream`. Never throws. */
const populate = async (
  context: ControlContext,
  { prefetchDirectory, streamSpeed }: EngineConfig,
  signal: AbortSignal,
  log: Log,
): Promise<void> => {
  if (prefetchDirectory !== null)
    await prefetchAll(context, { directory: prefetchDirectory, signal, log });
  if (streamSpeed !== null) await streamAll(context, { speed: streamSpeed, signal, log });
};
