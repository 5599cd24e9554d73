/** The two exports that are compared, each serving one image as a raw file. */
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdir, readFile, rm, rmdir, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { PROGRAM, run, vdiskfs } from '../support/vdiskfs.ts';

export interface Served {
  /** The raw file. */
  readonly path: string;
  readonly close: () => Promise<void>;
}

export interface ServerOptions {
  /** For mountpoints. */
  readonly scratch: string;
  readonly format: 'qcow2' | 'raw' | 'add-cow';
  /** In bytes. */
  readonly l2CacheBytes?: number;
  readonly passthrough?: boolean;
}

export type Serve = (image: string, options: ServerOptions) => Promise<Served>;

const READY_MS = 15_000;

export const serveVdiskfs: Serve = async (image, options) => {
  const mountpoint = join(options.scratch, `vdiskfs-${basename(image)}`);
  await mkdir(mountpoint, { recursive: true });
  const args = ['mount', '--format', options.format];
  if (options.l2CacheBytes !== undefined)
    args.push('--l2-cache-size', String(options.l2CacheBytes));
  if (options.passthrough === true) args.push('--passthrough');
  const done = await vdiskfs([...args, `disk=${image}`, mountpoint]);
  if (done.status !== 0) throw new Error(`${PROGRAM} mount exited ${done.status}: ${done.stderr}`);
  const close = async (): Promise<void> => {
    const ended = await vdiskfs(['umount', mountpoint], { timeoutMs: 60_000 });
    if (ended.status !== 0) throw new Error(`umount exited ${ended.status}: ${ended.stderr}`);
    await rmdir(mountpoint);
  };
  return { path: join(mountpoint, 'disk.raw'), close };
};

const isMounted = async (path: string): Promise<boolean> =>
  (await readFile('/proc/self/mountinfo', 'utf8')).includes(` ${path} `);

/** Errors: when the server has ended, or nothing is there within 15 s. */
export const waitUntilMounted = async (path: string, server: ChildProcess): Promise<void> => {
  for (const end = Date.now() + READY_MS; !(await isMounted(path)); ) {
    if (server.exitCode !== null) throw new Error(`the server exited ${server.exitCode}`);
    if (Date.now() > end) throw new Error(`${path} was not mounted within ${READY_MS} ms`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
};

/** `qemu-storage-daemon`: file node with page cache, format node, FUSE export. */
export const serveQemu: Serve = async (image, options) => {
  const path = join(options.scratch, `qemu-${basename(image)}.raw`);
  await writeFile(path, '');
  const cache =
    options.l2CacheBytes === undefined ? '' : `,l2-cache-size=${String(options.l2CacheBytes)}`;
  const server = spawn(
    'qemu-storage-daemon',
    [
      ...['--blockdev', `driver=file,node-name=file,filename=${image}`],
      ...['--blockdev', `driver=${options.format},node-name=disk,file=file${cache}`],
      ...['--export', `type=fuse,id=export,node-name=disk,mountpoint=${path},writable=on`],
    ],
    { stdio: ['ignore', 'ignore', 'inherit'] },
  );
  const ended = new Promise<void>((resolve) => server.once('exit', () => resolve()));
  await waitUntilMounted(path, server);
  const close = async (): Promise<void> => {
    server.kill('SIGTERM');
    await ended;
    await run('umount', ['-l', path]);
    await rm(path);
  };
  return { path, close };
};

/** No server: the limit. */
export const servePlainFile: Serve = async (image) => ({
  path: image,
  close: () => Promise.resolve(),
});
