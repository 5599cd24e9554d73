/** Which process a number means: pids are used again, a pid with its time of start is not. */
import { readdirSync, readFileSync } from 'node:fs';

export interface ProcessIdentity {
  readonly pid: number;
  /** Field 22 of /proc/PID/stat. */
  readonly startTime: string;
}

/**
 * Null when there is no such process, or only its exit status is left. The first thread may be gone while others still
 * finish a write.
 */
export const startTimeOf = (pid: number): string | null => {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'utf8');
    const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
    const isOver = /[ZX]/.test(fields[0] ?? '') && readdirSync(`/proc/${pid}/task`).length <= 1;
    return isOver ? null : (fields[19] ?? null);
  } catch {
    return null;
  }
};

export const identify = (pid: number): ProcessIdentity => ({
  pid,
  startTime: startTimeOf(pid) ?? '',
});

export const isAlive = ({ pid, startTime }: ProcessIdentity): boolean =>
  startTime !== '' && startTimeOf(pid) === startTime;
