#!/usr/bin/env node
/** The command `vdiskfs`. What a mount needs is started before anything else is loaded. */
import { isCallLeft } from '../base/left-calls.ts';
import { neededBy } from './mount-form.ts';

const line = process.argv.slice(2);
const ahead = await (async () => {
  const needed = neededBy(line);
  if (needed === 'supervisor') return (await import('../daemon/head-start.ts')).beginSupervisor();
  if (needed === 'engine') return (await import('../daemon/first-engine.ts')).beginEngine();
  return null;
})();
const [{ EXIT }, { runLine }] = await Promise.all([
  import('./exit-codes.ts'),
  import('./run-line.ts'),
]);

process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code !== 'EPIPE') process.exitCode = EXIT.failure;
});
process.exitCode = await runLine(line);
ahead?.abandonUnused();
// Its thread would keep an ordinary exit waiting: for a mount that hangs, for ever.
if (isCallLeft()) {
  for (const stream of [process.stdout, process.stderr])
    await new Promise<void>((resolve) => stream.write('', () => resolve()));
  const { exitAtOnce } = await import('../os/process.ts');
  exitAtOnce(Number(process.exitCode));
}
