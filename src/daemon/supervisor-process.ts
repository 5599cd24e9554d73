/** What the supervisor's process does once its modules are loaded: waits for the configuration, and serves the mount. */
import { closeSync, openSync, rmSync } from 'node:fs';
import type { BlockErrorWire } from '../base/block-error.ts';
import { toBlockError } from '../base/block-error.ts';
import { createLog } from '../base/log.ts';
import { putDescriptor } from '../os/descriptors.ts';
import type { EngineProcess } from './engine-process.ts';
import { listenForRestart } from './restart.ts';
import { Service } from './service.ts';
import { Supervisor, type SupervisorConfig } from './supervisor.ts';

/** What the command tells the daemon. */
export interface StartRequest {
  readonly config: SupervisorConfig;
  /** Of the daemon from here on: until then it complains to the command's stderr. */
  readonly logPath: string;
}

/** What the daemon tells the command that started it. */
export type StartOutcome =
  | { readonly type: 'ready'; readonly warnings: readonly string[] }
  | { readonly type: 'failed'; readonly error: BlockErrorWire };

/** Serves the mount that it is asked for; ends the process. Without a request it ends when the command does. */
export const superviseDaemon = (engine: EngineProcess): void => {
  process.chdir('/');
  const ended = (): void => {
    engine.kill();
    process.exit(1);
  };
  if (!process.connected) ended();
  process.once('disconnect', ended);
  process.once('message', (request: StartRequest) => {
    process.off('disconnect', ended);
    run(request, engine).then(
      (code) => {
        // It ended well, or the command has been told why it did not begin: a log is left by what ends otherwise.
        rmSync(request.logPath, { force: true });
        process.exit(code);
      },
      () => process.exit(1),
    );
  });
};

const tell = (outcome: StartOutcome): Promise<void> =>
  new Promise((resolve) => {
    if (process.send === undefined || !process.connected) resolve();
    else process.send(outcome, undefined, undefined, () => resolve());
  });

const run = async (
  { config, logPath }: StartRequest,
  firstEngine: EngineProcess,
): Promise<number> => {
  let supervisor: Supervisor;
  try {
    logTo(logPath);
    const log = createLog({ level: config.logLevel });
    const service = new Service({}, log);
    supervisor = new Supervisor(config, { log, service, taken: null, firstEngine });
    for (const signal of ['SIGTERM', 'SIGINT'] as const)
      process.on(signal, () => void supervisor.stop());
    process.on('SIGHUP', () => undefined);
    listenForRestart(supervisor, config, log);
    const { warnings } = await supervisor.start();
    await tell({ type: 'ready', warnings });
  } catch (error) {
    await tell({ type: 'failed', error: toBlockError(error).toWire() });
    return 1;
  } finally {
    if (process.connected) process.disconnect();
  }
  await supervisor.ended;
  return 0;
};

/** Nothing of the command's is kept open. Errors: those of open(2). */
const logTo = (path: string): void => {
  const log = openSync(path, 'a', 0o600);
  for (const standard of [1, 2]) putDescriptor(log, standard, { inherited: true });
  closeSync(log);
};
