/** A mount of one disk with its control socket, for contests between jobs. */
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { QmpConnection } from '../support/qmp.ts';
import { vdiskfs } from '../support/vdiskfs.ts';

const UNMOUNT_MS = 60_000;

/** A disk that is served: by vdiskfs, or by QEMU. */
export interface Running {
  /** The raw file. */
  readonly path: string;
  readonly qmp: QmpConnection;
  readonly close: () => Promise<void>;
}

/** `top`, an image or URL, as `top.raw`; `args` of the command `mount`. */
export const startVdiskfs = async (
  directory: string,
  top: string,
  args: readonly string[] = [],
): Promise<Running> => {
  const mountpoint = join(directory, 'mnt');
  const socket = join(directory, 'vdiskfs.sock');
  await mkdir(mountpoint, { recursive: true });
  const own = ['--socket', socket, '--state-dir', join(directory, 'state')];
  const done = await vdiskfs(['mount', ...own, ...args, `top=${top}`, mountpoint]);
  if (done.status !== 0) throw new Error(done.stderr);
  const qmp = await QmpConnection.open(socket);
  const close = async (): Promise<void> => {
    qmp.close();
    const ended = await vdiskfs(['umount', mountpoint], { timeoutMs: UNMOUNT_MS });
    if (ended.status !== 0) throw new Error(ended.stderr);
  };
  return { path: join(mountpoint, 'top.raw'), qmp, close };
};

/** Resolves when the job has completed. Errors: what the job failed with; that it takes longer than `limitMs`. */
export const completed = async (qmp: QmpConnection, limitMs: number): Promise<void> => {
  const { data } = await qmp.event('BLOCK_JOB_COMPLETED', limitMs);
  if (data?.['error'] !== undefined) throw new Error(String(data['error']));
};
