/** Starting a mount: as a daemon of its own, or in the command's own process. */
import { spawn } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { BlockError, toBlockError } from '../base/block-error.ts';
import { createLog } from '../base/log.ts';
import type { TakenOver } from './kept-state.ts';
import { forgetService, type Service } from './service.ts';
import type { Ready, SupervisorConfig } from './supervisor.ts';
import type { StartOutcome } from './supervisor-main.ts';

/**
 * Returns when the mount is usable; the daemon has a session of its own, logs to `logPath`, and keeps none of the
 * caller's descriptors. A mount that ends well takes its log away. Errors: why the mount failed.
 */
export const startDaemon = async (config: SupervisorConfig, logPath: string): Promise<Ready> => {
  const log = openSync(logPath, 'a', 0o600);
  try {
    const program = fileURLToPath(new URL('./supervisor-main.js', import.meta.url));
    const child = spawn(process.execPath, [program, logPath], {
      detached: true,
      stdio: ['ignore', log, log, 'ipc'],
      cwd: '/',
      env: withoutService(process.env),
    });
    const outcome = await new Promise<StartOutcome>((resolve, reject) => {
      child.once('error', reject);
      child.once('exit', (code, signal) => reject(diedEarly(signal ?? String(code), logPath)));
      child.once('message', (message) => resolve(message as StartOutcome));
      child.send(config);
    });
    if (child.connected) child.disconnect();
    child.unref();
    if (outcome.type === 'failed') throw BlockError.fromWire(outcome.error);
    return outcome;
  } catch (error) {
    throw toBlockError(error, { op: 'mount' });
  } finally {
    closeSync(log);
  }
};

// The daemon is not the process that a service manager has started.
const withoutService = (env: NodeJS.ProcessEnv): NodeJS.ProcessEnv => {
  const copy = { ...env };
  forgetService(copy);
  return copy;
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
  const [{ Supervisor }, { listenForRestart }] = await Promise.all([
    import('./supervisor.ts'),
    import('./restart.ts'),
  ]);
  const log = createLog({ level: config.logLevel });
  const supervisor = new Supervisor(config, log, service, taken);
  for (const signal of ['SIGTERM', 'SIGINT'] as const)
    process.on(signal, () => void supervisor.stop());
  listenForRestart(supervisor, config, log);
  const { warnings } = await supervisor.start();
  await ready(warnings);
  await supervisor.ended;
};
