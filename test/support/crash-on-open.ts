/**
 * Loaded into the processes of a mount (`NODE_OPTIONS=--import …`): one that opens the file CRASH_ON crashes, while the file
 * CRASH_WHILE is there. For what an image does on which a parser breaks.
 */
import { existsSync } from 'node:fs';
import promises from 'node:fs/promises';
import { syncBuiltinESMExports } from 'node:module';

const { CRASH_ON, CRASH_WHILE } = process.env;
const { open } = promises;

promises.open = (path, ...more) => {
  if (path === CRASH_ON && existsSync(CRASH_WHILE ?? '')) process.abort();
  return open(path, ...more);
};
syncBuiltinESMExports();
