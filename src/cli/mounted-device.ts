/** A view's path as what the control socket calls it: the mount that serves it, and its device name there. */
import { realpath } from 'node:fs/promises';
import { BlockError, toBlockError } from '../base/block-error.ts';
import type { QmpClient } from '../control/client.ts';
import { connectToMount } from '../daemon/control-client.ts';
import { vdiskfsMounts } from '../daemon/mount-table.ts';

export interface MountedDevice {
  readonly client: QmpClient;
  readonly mountpoint: string;
  /** The view's file name without `.raw`. */
  readonly device: string;
}

/** Connects to the engine that serves a view. Errors: EINVAL for a path that is no view; those of the socket. */
export const connectToDevice = async (path: string): Promise<MountedDevice> => {
  const real = await realpath(path).catch((error: unknown) => {
    throw toBlockError(error, { path });
  });
  const mount = vdiskfsMounts().find((m) => real.startsWith(`${m.mountpoint}/`));
  if (mount === undefined) {
    const message = 'is no view of a vdiskfs mount';
    const hint = 'give the path of the raw view, not that of its image';
    throw new BlockError({ kind: 'bad-request', message, hint, path });
  }
  const name = real.slice(mount.mountpoint.length + 1);
  const client = await connectToMount(mount.mountpoint);
  return { client, mountpoint: mount.mountpoint, device: name.replace(/\.raw$/, '') };
};

/** The mount at a path. Errors: EINVAL for a path that is none. */
export const mountpointOf = async (path: string): Promise<string> => {
  const real = await realpath(path).catch((error: unknown) => {
    throw toBlockError(error, { path });
  });
  const mount = vdiskfsMounts().find(
    (m) => real === m.mountpoint || real.startsWith(`${m.mountpoint}/`),
  );
  if (mount !== undefined) return mount.mountpoint;
  throw new BlockError({ kind: 'bad-request', message: 'is no vdiskfs mount', path });
};
