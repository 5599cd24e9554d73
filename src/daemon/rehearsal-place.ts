/**
 * Which engines rehearse (rehearsal.ts), and where: in one directory of the runtime directory, one engine at a time. Who has the lock of
 * the runtime directory (flock(2)) owns all that is in there, also what an engine has left that was killed.
 */
import { closeSync, openSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { tryLock } from '../os/file-locks.ts';
import type { EngineConfig } from './messages.ts';

/** `off`: an engine that has just started is slower for a second. */
const REHEARSAL_SWITCH = 'VDISKFS_REHEARSAL';

/** Those that may have to write soon. A careful engine does nothing that it is not asked for. */
export const isRehearsed = ({ fuse, readOnly, careful }: EngineConfig): boolean =>
  fuse !== null && !readOnly && !careful && process.env[REHEARSAL_SWITCH] !== 'off';

export const rehearsalDirectory = (runtimeDirectory: string): string =>
  join(runtimeDirectory, 'rehearsal');

/** Makes the place one's own until the returned function is called; null: another engine has it. Errors: those of the host. */
export const takePlace = (runtimeDirectory: string): (() => void) | null => {
  const descriptor = openSync(runtimeDirectory, 'r');
  let isOurs = false;
  try {
    isOurs = tryLock(descriptor);
  } finally {
    if (!isOurs) closeSync(descriptor);
  }
  return isOurs ? () => closeSync(descriptor) : null;
};

/** What an engine has left there that is gone, unless another one rehearses. Never throws. */
export const removeRehearsal = (runtimeDirectory: string): void => {
  try {
    const leave = takePlace(runtimeDirectory);
    if (leave === null) return;
    try {
      rmSync(rehearsalDirectory(runtimeDirectory), { recursive: true, force: true });
    } finally {
      leave();
    }
  } catch {
    // The next one that rehearses tries again.
  }
};
