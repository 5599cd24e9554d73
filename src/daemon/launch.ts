/** Starting a mount: as a daemon of its own, or in the command's own process. */
import { BlockError, toBlockError } from '../base/block-error.ts';
import { createLog } from '../base/log.ts';
import { takeSupervisor } from './head-start.ts';
import type { TakenOver } from './kept-state.ts';
import type { Service } from './service.ts';
import type { Ready, SupervisorConfig } from './supervisor.ts';
import type { StartOutcome, StartRequest } from './supervisor-process.ts';

/**
 * Returns when the mount is usable; the daemon has a session of its own, logs to `logPath`, and keeps none of the
 * caller's descriptors. A mount that ends well takes its log away. Errors: why the mount failed.
 */
export const startDaemon = async (config: SupervisorConfig, logPath: string): Promise<Ready> => {
  const supervisor = takeSupervisor();
  const { child } = supervisor;
  try {
    const outcome = await new Promise<StartOutcome>((resolve, reject) => {
      const died = (): void =>
        reject(diedEarly(child.signalCode ?? String(child.exitCode), logPath));
      if (supervisor.failure !== null) reject(supervisor.failure);
      if (child.exitCode !== null || child.signalCode !== null) died();
      child.once('error', reject);
      child.once('exit', died);
      child.once('message', (message) => resolve(message as StartOutcome));
      const request: StartRequest = { config, logPath };
      // One that has ended is told of by its exit.
      child.send(request, () => undefined);
    });
    if (child.connected) child.disconnect();
    child.unref();
    if (outcome.type === 'failed') throw BlockError.fromWire(outcome.error);
    return outcome;
  } catch (error) {
    throw toBlockError(error, { op: 'mount' });
  }
};

const diedEarly = (how: string, logPath: string): BlockError =>
  new BlockError({
    kind: 'io',
    message: `the daemon ended with ${how} before the mount was usable`,
    hint: `see ${logPath}`,
  });

/** Serves until the mount ends; SIGTERM and SIGINT unmount. Errors: why the mount failed. */
export const stayInForeground = async (
  config: SupervisorConfig,
  { service, taken }: { readonly service: Service; readonly taken: TakenOver | null },
  ready: (warnings: readonly string[]) => Promise<void>,
): Promise<void> => {
  // A command that starts a daemon needs none of it.
  const [{ Supervisor }, { listenForRestart }, { takeEngine }] = await Promise.all([
    import('./supervisor.ts'),
    import('./restart.ts'),
    import('./first-engine.ts'),
  ]);
  const log = createLog({ level: config.logLevel });
  const supervisor = new Supervisor(config, { log, service, taken, firstEngine: takeEngine() });
  for (const signal of ['SIGTERM', 'SIGINT'] as const)
    process.on(signal, () => void supervisor.stop());
  listenForRestart(supervisor, config, log);
  const { warnings } = await supervisor.start();
  await ready(warnings);
  await supervisor.ended;
};
