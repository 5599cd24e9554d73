/** Files that a command makes must not be there: nothing is written over without being asked for. */
import { stat } from 'node:fs/promises';
import { BlockError } from '../base/block-error.ts';

/** Errors: EEXIST. */
export const refuseExisting = async (path: string, op: string, hint?: string): Promise<void> => {
  const isThere = await stat(path).then(
    () => true,
    () => false,
  );
  if (!isThere) return;
  const message = 'is there already';
  throw new BlockError({ kind: 'bad-request', errno: 'EEXIST', message, hint, path, op });
};
