/**
 * Where a mount keeps what must outlive an engine but not the machine: control socket, log, restart journals
 * (docs/CONTROL.md).
 */
import { createHash } from 'node:crypto';
import { chmodSync, lstatSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { BlockError, toBlockError } from '../base/block-error.ts';

const PRIVATE = 0o700;

export interface RuntimePaths {
  readonly directory: string;
  /** `ID.sock` unless `--socket` names another. */
  readonly socket: string;
  readonly log: string;
  /** Of all mounts of this user: an image may be mounted elsewhere after everything died. */
  readonly journals: string;
}

/** The first 16 hex digits of the SHA-256 of a mountpoint's real path. */
export const mountId = (realMountpoint: string): string =>
  createHash('sha256').update(realMountpoint).digest('hex').slice(0, 16);

/** `$XDG_RUNTIME_DIR/vdiskfs`, for root `/run/vdiskfs`, else `/tmp/vdiskfs-UID`. */
export const runtimeDirectory = (
  env: NodeJS.ProcessEnv = process.env,
  uid = process.getuid?.() ?? 0,
): string => {
  const xdg = env['XDG_RUNTIME_DIR'];
  if (uid === 0) return '/run/vdiskfs';
  return xdg === undefined || xdg === '' ? `/tmp/vdiskfs-${uid}` : join(xdg, 'vdiskfs');
};

/** `$XDG_STATE_HOME/vdiskfs/ID`, for root `/var/lib/vdiskfs/ID`, else `~/.local/state/vdiskfs/ID`. Not made here. */
export const stateDirectory = (
  realMountpoint: string,
  env: NodeJS.ProcessEnv = process.env,
  uid = process.getuid?.() ?? 0,
): string => {
  const id = mountId(realMountpoint);
  const xdg = env['XDG_STATE_HOME'];
  if (xdg !== undefined && xdg !== '') return join(xdg, 'vdiskfs', id);
  if (uid === 0) return join('/var/lib/vdiskfs', id);
  return join(env['HOME'] ?? '/tmp', '.local/state/vdiskfs', id);
};

/** Paths for a mountpoint; makes the directories, mode 0700. Errors: EACCES when somebody else owns them. */
export const prepareRuntime = (
  realMountpoint: string,
  directory = runtimeDirectory(),
): RuntimePaths => {
  const journals = join(directory, 'journal');
  for (const path of [directory, journals]) makePrivate(path);
  const id = mountId(realMountpoint);
  return {
    directory,
    socket: join(directory, `${id}.sock`),
    log: join(directory, `${id}.log`),
    journals,
  };
};

// In /tmp anybody may have made it first.
const makePrivate = (path: string): void => {
  try {
    mkdirSync(path, { recursive: true, mode: PRIVATE });
  } catch (error) {
    throw toBlockError(error, { op: 'mkdir', path });
  }
  const s = lstatSync(path);
  const uid = process.getuid?.() ?? 0;
  if (!s.isDirectory() || s.uid !== uid) {
    throw new BlockError({
      kind: 'not-permitted',
      message: 'is not a directory of this user',
      hint: 'remove it, or set XDG_RUNTIME_DIR',
      path,
    });
  }
  if ((s.mode & 0o777) !== PRIVATE) chmodSync(path, PRIVATE);
};
