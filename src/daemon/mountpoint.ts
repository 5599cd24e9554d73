/** What a mountpoint must be before something is mounted on it. */
import { realpathSync, statSync } from 'node:fs';
import { stat } from 'node:fs/promises';
import { BlockError, toBlockError } from '../base/block-error.ts';
import { FILE_SYSTEM_TYPE, mountedAt } from './mount-table.ts';

/** Its real path. Errors: ENOENT, ENOTDIR, EBUSY when one of our mounts is there already. */
export const requireFreeMountpoint = (path: string): string => {
  let real: string;
  try {
    real = realpathSync(path);
  } catch (error) {
    throw toBlockError(error, { op: 'mount', path });
  }
  if (mountedAt(real)?.type === FILE_SYSTEM_TYPE) {
    const hint = `vdiskfs umount ${path}`;
    throw new BlockError({
      kind: 'busy',
      message: 'is a vdiskfs mount already',
      hint,
      path,
      op: 'mount',
    });
  }
  if (!statSync(real).isDirectory()) {
    throw new BlockError({
      kind: 'bad-request',
      errno: 'ENOTDIR',
      message: 'is not a directory',
      path,
      op: 'mount',
    });
  }
  return real;
};

/** Takes away a mount of ours whose daemon is dead ("Transport endpoint is not connected"). */
export const cleanDeadMount = async (absolutePath: string): Promise<void> => {
  if (mountedAt(absolutePath)?.type !== FILE_SYSTEM_TYPE) return;
  const code = await stat(absolutePath).then(
    () => null,
    (error: NodeJS.ErrnoException) => error.code ?? null,
  );
  if (code !== 'ENOTCONN' && code !== 'ECONNABORTED') return;
  const { unmountFuse } = await import('./mounting.ts');
  await unmountFuse(absolutePath, { lazy: true });
};
