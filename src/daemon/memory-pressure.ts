/** The place of a mount's processes under memory pressure. */
import { writeFileSync } from 'node:fs';
import type { Log } from '../base/log.ts';
import { becomeIoFlusher } from '../os/process.ts';

/**
 * ext4 on a loop device on a view can fill the machine's dirty limit, and our own writes would wait for themselves. Children
 * inherit it: called before the first engine is started.
 */
export const protectFromPressure = (log: Log): void => {
  try {
    if (!becomeIoFlusher()) return;
    writeFileSync('/proc/self/oom_score_adj', '-500');
  } catch (error) {
    log.debug('supervisor', `no protection from memory pressure: ${String(error)}`);
  }
};
