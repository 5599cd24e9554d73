/** A `qemu-storage-daemon` with a monitor, for contests. */
import { spawn } from 'node:child_process';
import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { QmpConnection } from '../support/qmp.ts';
import { run } from '../support/vdiskfs.ts';
import { waitUntilMounted } from './servers.ts';

export interface StorageDaemon {
  /** The exported raw file. */
  readonly path: string;
  readonly qmp: QmpConnection;
  readonly close: () => Promise<void>;
}

/** `blockdevs`: one each; `top` is exported, for reading alone: jobs refuse to run under a writable export. */
export const startStorageDaemon = async (
  scratch: string,
  blockdevs: readonly string[],
  top: string,
): Promise<StorageDaemon> => {
  const path = join(scratch, 'qemu.raw');
  const socket = join(scratch, 'qemu.sock');
  await writeFile(path, '');
  const server = spawn(
    'qemu-storage-daemon',
    [
      ...blockdevs.flatMap((b) => ['--blockdev', b]),
      ...['--chardev', `socket,id=m,path=${socket},server=on,wait=off`, '--monitor', 'chardev=m'],
      ...['--export', `type=fuse,id=export,node-name=${top},mountpoint=${path},writable=off`],
    ],
    { stdio: ['ignore', 'ignore', 'inherit'] },
  );
  const ended = new Promise<void>((resolve) => server.once('exit', () => resolve()));
  await waitUntilMounted(path, server);
  const qmp = await QmpConnection.open(socket);
  const close = async (): Promise<void> => {
    qmp.close();
    server.kill('SIGTERM');
    await ended;
    await run('umount', ['-l', path]);
    await rm(path);
    await rm(socket, { force: true });
  };
  return { path, qmp, close };
};
