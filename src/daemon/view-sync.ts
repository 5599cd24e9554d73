/** fsync(2) of a view by another process: from the engine it would wait for itself. */
import { spawn } from 'node:child_process';
import { BlockError, toBlockError } from '../base/block-error.ts';

/** What was written to the view before is in the image then, also what the kernel still holds. Errors: EIO. */
export const syncView = async (path: string, op: string): Promise<void> => {
  const child = spawn('sync', ['--', path], {
    stdio: ['ignore', 'ignore', 'pipe'],
    env: { ...process.env, LC_ALL: 'C' },
  });
  let complaint = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    complaint += text;
  });
  const code = await new Promise<number | null>((resolve, reject) => {
    child.once('error', (error) => reject(toBlockError(error, { op, path })));
    child.once('close', resolve);
  });
  if (code === 0) return;
  throw new BlockError({ kind: 'io', message: complaint.trim(), path, op });
};
