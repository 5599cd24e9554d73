/** Which engines rehearse (rehearsal.ts), and where: in a directory of the runtime directory, which is removed with an engine that is killed. */
import { rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import type { EngineConfig } from './messages.ts';
import { mountId } from './runtime-directory.ts';

/** `off`: an engine that has just started is slower for a second. */
const REHEARSAL_SWITCH = 'VDISKFS_REHEARSAL';

/** Those that may have to write soon. A careful engine does nothing that it is not asked for. */
export const isRehearsed = ({ fuse, readOnly, careful }: EngineConfig): boolean =>
  fuse !== null && !readOnly && !careful && process.env[REHEARSAL_SWITCH] !== 'off';

export interface RehearsalPlace {
  readonly mountpoint: string;
  readonly journalDirectory: string;
}

/** One engine of a mount serves at a time. */
export const rehearsalDirectory = ({ mountpoint, journalDirectory }: RehearsalPlace): string =>
  join(dirname(journalDirectory), `${mountId(mountpoint)}.rehearsal`);

/** What is left of one, when its engine is gone. Never throws. */
export const removeRehearsal = (place: RehearsalPlace): void => {
  try {
    rmSync(rehearsalDirectory(place), { recursive: true, force: true });
  } catch {
    // It lies in memory, and the next mount there tries again.
  }
};
