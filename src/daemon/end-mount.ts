/** Ending a mount from outside, as `vdiskfs umount` does. */
import { resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { BlockError, toBlockError } from '../base/block-error.ts';
import type { BlockJobInfo } from '../job/job-info.ts';
import { queryStatus } from './control-client.ts';
import { describeHolders, holdersOf } from './holders.ts';
import { FILE_SYSTEM_TYPE, mountedAt } from './mount-table.ts';
import { unmountFuse } from './mounting.ts';
import { startTimeOf } from './process-identity.ts';

/** A loop device that is just going, or a process that is ending, gets this long. */
const BUSY_PATIENCE_MS = 5000;
const POLL_MS = 50;
/** How long a daemon may take to flush; it is told about each time this has passed. */
const DAEMON_PATIENCE_MS = 60_000;

/**
 * Unmounts and waits until the daemon has ended: everything is flushed then. Returns the jobs that ran. Errors: EINVAL for what
 * is no mount of ours, EBUSY naming who holds it, ETIMEDOUT when the daemon does not end.
 */
export const endMount = async (
  path: string,
  options: { readonly lazy: boolean },
): Promise<readonly BlockJobInfo[]> => {
  // Not realpath: that would ask a mount whose daemon may be dead.
  const mountpoint = resolve(path);
  if (mountedAt(mountpoint)?.type !== FILE_SYSTEM_TYPE) {
    throw new BlockError({
      kind: 'bad-request',
      message: 'is no vdiskfs mount',
      path,
      op: 'umount',
    });
  }
  const daemon = await queryStatus(mountpoint).then(
    (status) => ({
      pid: status['supervisor-pid'],
      startTime: startTimeOf(status['supervisor-pid']),
      jobs: status.jobs.filter((job) => job.status !== 'concluded'),
    }),
    () => null,
  );
  await unmount(mountpoint, options.lazy);
  if (daemon !== null && !options.lazy) await untilEnded(daemon.pid, daemon.startTime, path);
  return daemon?.jobs ?? [];
};

const unmount = async (mountpoint: string, lazy: boolean): Promise<void> => {
  const end = performance.now() + BUSY_PATIENCE_MS;
  for (;;) {
    try {
      await unmountFuse(mountpoint, { lazy });
      return;
    } catch (error) {
      const failure = toBlockError(error);
      if (failure.kind !== 'busy') throw failure;
      if (performance.now() < end) {
        await sleep(POLL_MS);
        continue;
      }
      throw new BlockError({
        kind: 'busy',
        message: `is busy: ${describeHolders(await holdersOf(mountpoint))}`,
        hint: 'end what holds it, or use --lazy',
        path: mountpoint,
        op: 'umount',
      });
    }
  }
};

const untilEnded = async (pid: number, startTime: string | null, path: string): Promise<void> => {
  for (
    let waitedMs = 0;
    startTimeOf(pid) === startTime && startTime !== null;
    waitedMs += POLL_MS
  ) {
    if (waitedMs > DAEMON_PATIENCE_MS) {
      const message = `is unmounted, but its daemon ${pid} has not ended after ${DAEMON_PATIENCE_MS / 1000} s`;
      throw new BlockError({ kind: 'busy', errno: 'ETIMEDOUT', message, path, op: 'umount' });
    }
    await sleep(POLL_MS);
  }
};
