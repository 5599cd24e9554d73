/** A mount with an overlay over a base, and its control socket. */
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { CleanupStack } from '../support/cleanup-stack.ts';
import { qemuImg, qemuIo } from '../support/qemu-img.ts';
import { QmpConnection } from '../support/qmp.ts';
import { type Cleanup, scratchDirectory } from '../support/scratch.ts';
import { vdiskfs, vdiskfsJson } from '../support/vdiskfs.ts';

export interface ControlMount {
  readonly root: string;
  readonly images: string;
  readonly mountpoint: string;
  readonly socketPath: string;
  readonly stateDirectory: string;
  /** Of the overlay. */
  readonly view: string;
  readonly overlay: string;
  readonly base: string;
  readonly cleanup: Cleanup;
  mount(args?: readonly string[]): Promise<void>;
  qmp(options?: { readonly negotiate?: boolean }): Promise<QmpConnection>;
  enginePid(): Promise<number>;
}

/** `vm.qcow2` over `base.qcow2`, of which 3/4 have content; mounted, unless told otherwise. */
export const controlMount = async (
  t: Cleanup,
  options: { readonly sizeMib?: number; readonly mounted?: boolean } = {},
): Promise<ControlMount> => {
  const cleanup = new CleanupStack(t);
  const root = await scratchDirectory(cleanup);
  const images = join(root, 'images');
  const mountpoint = join(root, 'mnt');
  const sizeMib = options.sizeMib ?? 64;
  await mkdir(images);
  await mkdir(mountpoint);
  const base = join(images, 'base.qcow2');
  const overlay = join(images, 'vm.qcow2');
  await qemuImg(['create', '-q', '-f', 'qcow2', base, `${sizeMib}M`]);
  await qemuIo(base, [
    `write -P 7 0 ${sizeMib / 2}M`,
    `write -P 9 ${(sizeMib * 3) / 4}M ${sizeMib / 4}M`,
  ]);
  await qemuImg(['create', '-q', '-f', 'qcow2', '-b', 'base.qcow2', '-F', 'qcow2', overlay]);
  await qemuIo(overlay, ['write -P 3 1M 300k']);
  cleanup.after(async () => {
    await vdiskfs(['umount', '--lazy', mountpoint]);
  });
  const socketPath = join(root, 'control.sock');
  const stateDirectory = join(root, 'state');
  const mount = async (args: readonly string[] = []): Promise<void> => {
    const own = ['--socket', socketPath, '--state-dir', stateDirectory];
    const done = await vdiskfs(['mount', ...own, ...args, images, mountpoint]);
    if (done.status !== 0) throw new Error(done.stderr);
  };
  if (options.mounted !== false) await mount();
  return {
    root,
    images,
    mountpoint,
    socketPath,
    stateDirectory,
    view: join(mountpoint, 'vm.raw'),
    overlay,
    base,
    cleanup,
    mount,
    qmp: async (how) => {
      const connection = await QmpConnection.open(socketPath, how);
      cleanup.after(async () => connection.close());
      return connection;
    },
    enginePid: async () => ((await vdiskfsJson(['status', mountpoint])) as { pid: number }).pid,
  };
};
