/** A `qemu-storage-daemon` with a monitor, for contests. */
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { QmpConnection } from '../support/qmp.ts';
import { run } from '../support/vdiskfs.ts';
import type { Running } from './running.ts';
import { waitUntilMounted } from './servers.ts';

const READY_MS = 15_000;

export interface StorageDaemonOptions {
  readonly scratch: string;
  /** One each. */
  readonly blockdevs: readonly string[];
  /** The node that is exported, for reading alone: jobs refuse to run under a writable FUSE export. */
  readonly top: string;
}

/** With `top` as a file. */
export const startStorageDaemon = async (options: StorageDaemonOptions): Promise<Running> => {
  const { scratch, top } = options;
  const path = join(scratch, 'qemu.raw');
  await writeFile(path, '');
  const fuse = `type=fuse,id=export,node-name=${top},mountpoint=${path},writable=off`;
  const daemon = await start(options, ['--export', fuse], (server) =>
    waitUntilMounted(path, server),
  );
  const close = async (): Promise<void> => {
    await daemon.close();
    await run('umount', ['-l', path]);
    await rm(path);
  };
  return { path, qmp: daemon.qmp, close };
};

/** With `top` as a writable NBD export, which jobs do run under; `path` is its URL. */
export const startNbdDaemon = async (options: StorageDaemonOptions): Promise<Running> => {
  const { scratch, top } = options;
  const socket = join(scratch, 'qemu-nbd.sock');
  const args = [
    ...['--nbd-server', `addr.type=unix,addr.path=${socket}`],
    ...['--export', `type=nbd,id=export,node-name=${top},name=disk,writable=on`],
  ];
  const daemon = await start(options, args, async () => {
    for (const end = Date.now() + READY_MS; !existsSync(socket); await sleep(20)) {
      if (Date.now() > end) throw new Error(`nobody listens at ${socket} after ${READY_MS} ms`);
    }
  });
  const close = async (): Promise<void> => {
    await daemon.close();
    await rm(socket, { force: true });
  };
  return { path: `nbd+unix:///disk?socket=${socket}`, qmp: daemon.qmp, close };
};

const start = async (
  { scratch, blockdevs }: StorageDaemonOptions,
  exported: readonly string[],
  ready: (server: ReturnType<typeof spawn>) => Promise<void>,
): Promise<Pick<Running, 'qmp' | 'close'>> => {
  const socket = join(scratch, 'qemu.sock');
  const server = spawn(
    'qemu-storage-daemon',
    [
      ...blockdevs.flatMap((b) => ['--blockdev', b]),
      ...['--chardev', `socket,id=m,path=${socket},server=on,wait=off`, '--monitor', 'chardev=m'],
      ...exported,
    ],
    { stdio: ['ignore', 'ignore', 'inherit'] },
  );
  const ended = new Promise<void>((resolve) => server.once('exit', () => resolve()));
  await ready(server);
  const qmp = await QmpConnection.open(socket);
  const close = async (): Promise<void> => {
    qmp.close();
    server.kill('SIGTERM');
    await ended;
    await rm(socket, { force: true });
  };
  return { qmp, close };
};
