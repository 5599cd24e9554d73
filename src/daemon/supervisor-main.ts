/**
 * The supervisor's process. `vdiskfs mount` starts it detached, sends the configuration over the channel, and gets back
 * whether the mount is usable; then the channel is closed and the daemon is on its own. With --foreground the same runs
 * in the command's own process (launch.ts).
 */

import { rmSync } from 'node:fs';
import type { BlockErrorWire } from '../base/block-error.ts';
import { toBlockError } from '../base/block-error.ts';
import { createLog } from '../base/log.ts';
import { listenForRestart } from './restart.ts';
import { Service } from './service.ts';
import { Supervisor, type SupervisorConfig } from './supervisor.ts';

/** What the daemon tells the command that started it. */
export type StartOutcome =
  | { readonly type: 'ready'; readonly warnings: readonly string[] }
  | { readonly type: 'failed'; readonly error: BlockErrorWire };

const tell = (outcome: StartOutcome): Promise<void> =>
  new Promise((resolve) => {
    if (process.send === undefined || !process.connected) resolve();
    else process.send(outcome, undefined, undefined, () => resolve());
  });

const run = async (config: SupervisorConfig): Promise<number> => {
  const log = createLog({ level: config.logLevel });
  const supervisor = new Supervisor(config, log, new Service({}, log), null);
  for (const signal of ['SIGTERM', 'SIGINT'] as const)
    process.on(signal, () => void supervisor.stop());
  process.on('SIGHUP', () => undefined);
  listenForRestart(supervisor, config, log);
  try {
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

const [logPath] = process.argv.slice(2);
process.chdir('/');
process.once('message', (config: SupervisorConfig) => {
  run(config).then(
    (code) => {
      // It ended well, or the command has been told why it did not begin: a log is left by what ends otherwise.
      if (logPath !== undefined) rmSync(logPath, { force: true });
      process.exit(code);
    },
    () => process.exit(1),
  );
});
