/**
 * What an engine serves beside the mount: control socket and metrics. The commands of the socket and the jobs are many modules; a
 * mount is usable before they are loaded, and a client that is quicker waits for them.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { toBlockError } from '../base/block-error.ts';
import { serveMonitor } from '../control/server.ts';
import type { ControlScene, Ending } from './engine-control.ts';
import type { EngineConfig } from './messages.ts';
import type { MetricsSource } from './metrics.ts';

/** The control socket opens at the latest after this. */
const JOBS_PATIENCE_MS = 2000;

export interface EngineServers {
  /** What was left out until now is loaded, which a client wants at once. */
  loadRest(): void;
  /** Ends the jobs, keeping what a later engine needs to go on, and closes control socket and metrics. */
  close(how: { readonly mountEnds: boolean }): Promise<Ending>;
}

const NOTHING_ENDS: Ending = { targetsClosed: Promise.resolve(true) };

/** Opens control socket and metrics; jobs that go on are taken up before. Errors: those of a first engine's sockets. */
export const startServers = async (scene: ControlScene): Promise<EngineServers> => {
  const { config, log, store } = scene;
  let begin: () => void = () => undefined;
  const isTime = new Promise<void>((resolve) => {
    begin = resolve;
  });
  let stage: 'waits' | 'begun' | 'closed' = 'waits';
  const loadRest = (): void => {
    if (stage !== 'waits') return;
    stage = 'begun';
    begin();
  };
  const control = isTime
    .then(() => import('./engine-control.ts'))
    .then(({ beginControl }) => beginControl(scene));
  control.catch((error: unknown) => log.error('control socket', toBlockError(error).describe()));
  if (config.resume || config.generation > 0) {
    // A client that asks at once finds the jobs; but an image, or a state directory, that hangs keeps nobody from asking.
    const patience = sleep(JOBS_PATIENCE_MS, true, { ref: false });
    if (await Promise.race([store.hasRecords(), patience])) {
      loadRest();
      await Promise.race([control.then((begun) => begun.takenUp), patience]);
    }
  }
  const monitor = control.then((begun) => begun.monitor);
  const closeSocket = await serveMonitor(
    config.socketPath,
    { monitor, wanted: loadRest },
    log,
  ).catch((error: unknown) => {
    if (config.generation === 0) throw error;
    // The mount is in use: it goes on without being asked.
    log.error('control socket', toBlockError(error, { path: config.socketPath }).describe());
    return () => undefined;
  });
  const closeMetrics = await startMetrics(config, scene);
  return {
    loadRest,
    close: async (how) => {
      closeSocket();
      closeMetrics();
      const hasBegun = stage === 'begun';
      stage = 'closed';
      const begun = hasBegun ? await control.catch(() => null) : null;
      return (await begun?.close(how)) ?? NOTHING_ENDS;
    },
  };
};

const startMetrics = async (
  { metrics, generation }: EngineConfig,
  scene: MetricsSource & Pick<ControlScene, 'log'>,
): Promise<() => void> => {
  if (metrics === null) return () => undefined;
  const { serveMetrics } = await import('./metrics-server.ts');
  return serveMetrics(metrics, scene, { mustListen: generation === 0, log: scene.log });
};
