#!/usr/bin/env node
/** The command `vdiskfs`. */
import { EXIT } from './exit-codes.ts';
import { runLine } from './run-line.ts';

process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code !== 'EPIPE') process.exitCode = EXIT.failure;
});
process.exitCode = await runLine(process.argv.slice(2));
