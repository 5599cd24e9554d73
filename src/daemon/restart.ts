/**
 * `vdiskfs restart`: the supervisor is asked by SIGUSR2, which it hears whatever its engine does, and answers in a file of the
 * runtime directory.
 */
import { readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { BlockError, type BlockErrorWire, toBlockError } from '../base/block-error.ts';
import type { Log } from '../base/log.ts';
import { queryStatus } from './control-client.ts';
import { vdiskfsMounts } from './mount-table.ts';
import { mountId, runtimeDirectory } from './runtime-directory.ts';
import type { Supervisor, SupervisorConfig } from './supervisor.ts';

const POLL_MS = 50;
/** Flushing may take its time; the mount goes on meanwhile or afterwards, whatever is told here. */
const PATIENCE_MS = 180_000;

interface Report {
  readonly error: BlockErrorWire | null;
}

/** Swaps the engine at each SIGUSR2. */
export const listenForRestart = (
  supervisor: Supervisor,
  { mountpoint, journalDirectory }: SupervisorConfig,
  log: Log,
): void => {
  const path = reportPath(dirname(journalDirectory), mountpoint);
  const report = (error: BlockError | null): void => {
    if (error !== null) log.warning(mountpoint, error.describe());
    try {
      const content: Report = { error: error?.toWire() ?? null };
      writeFileSync(`${path}.new`, JSON.stringify(content), { mode: 0o600 });
      renameSync(`${path}.new`, path);
    } catch (failure) {
      log.warning(mountpoint, toBlockError(failure, { path }).describe());
    }
  };
  process.on('SIGUSR2', () => {
    supervisor.restart().then(
      () => report(null),
      (error: unknown) => report(toBlockError(error)),
    );
  });
};

const reportPath = (directory: string, mountpoint: string): string =>
  join(directory, `${mountId(mountpoint)}.restart`);

/** Swaps a mount's engine; resolves when the new one serves. Errors: EINVAL for no mount of ours, why it was refused. */
export const restartMount = async (path: string): Promise<void> => {
  const mountpoint = resolve(path);
  const refused = (message: string): BlockError =>
    new BlockError({ kind: 'bad-request', message, path, op: 'restart' });
  if (!vdiskfsMounts().some((m) => m.mountpoint === mountpoint))
    throw refused('is no vdiskfs mount');
  const before = await queryStatus(mountpoint);
  const answer = reportPath(runtimeDirectory(), mountpoint);
  rmSync(answer, { force: true });
  process.kill(before['supervisor-pid'], 'SIGUSR2');
  for (const end = Date.now() + PATIENCE_MS; Date.now() < end; await sleep(POLL_MS)) {
    const report = readReport(answer);
    if (report === null) continue;
    rmSync(answer, { force: true });
    if (report.error !== null) throw BlockError.fromWire(report.error);
    return;
  }
  throw new BlockError({
    kind: 'busy',
    errno: 'ETIMEDOUT',
    message: 'does not tell whether its engine was restarted: see `vdiskfs status`',
    path,
    op: 'restart',
  });
};

const readReport = (path: string): Report | null => {
  try {
    return JSON.parse(readFileSync(path, 'utf8')) as Report;
  } catch {
    return null;
  }
};
