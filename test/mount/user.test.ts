/** An ordinary user mounts, uses and unmounts, through fusermount3. */
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { chmod, chown, cp, mkdir, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { CleanupStack } from '../support/cleanup-stack.ts';
import { tool } from '../support/file-tools.ts';
import { assertClean, qemuImg } from '../support/qemu-img.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { type Finished, run } from '../support/vdiskfs.ts';

const NOBODY = 65_534;
const PROJECT = fileURLToPath(new URL('../../../', import.meta.url));
/** The packages that the program needs, and those that these need: folders below the project. */
const packageFolders = async (): Promise<readonly string[]> => {
  const lock = JSON.parse(await readFile(join(PROJECT, 'package-lock.json'), 'utf8')) as {
    readonly packages: Readonly<Record<string, { readonly dev?: boolean }>>;
  };
  return Object.entries(lock.packages)
    .filter(([folder, { dev }]) => folder !== '' && dev !== true)
    .map(([folder]) => folder)
    .filter((folder) => existsSync(join(PROJECT, folder)));
};

/** A copy of the built program that everybody can read: a checkout often lies in a private directory. */
const copyProgram = async (directory: string): Promise<string> => {
  await cp(join(PROJECT, 'dist'), join(directory, 'dist'), { recursive: true });
  await cp(join(PROJECT, 'package.json'), join(directory, 'package.json'));
  for (const folder of await packageFolders()) {
    const how = { recursive: true, dereference: true };
    await cp(join(PROJECT, folder), join(directory, folder), how);
  }
  await tool('chmod', ['-R', 'a+rX', directory]);
  return join(directory, 'dist/src/cli/main.js');
};

test('a user without root mounts, reads, writes and unmounts', async (t) => {
  const cleanup = new CleanupStack(t);
  const root = await scratchDirectory(cleanup);
  await chmod(root, 0o755);
  const { mode } = await stat('/dev/fuse');
  await chmod('/dev/fuse', 0o666);
  cleanup.after(() => chmod('/dev/fuse', mode & 0o777));
  // Every directory above must let the user through: the run's own temporary directory may not.
  await tool('chmod', ['a+x', join(root, '..')]);
  const program = await copyProgram(join(root, 'program'));
  const home = join(root, 'home');
  const images = join(home, 'images');
  const mountpoint = join(home, 'mnt');
  for (const path of [home, images, mountpoint, join(home, 'run')]) await mkdir(path);
  const image = join(images, 'disk.qcow2');
  await qemuImg(['create', '-q', '-f', 'qcow2', image, '16M']);
  for (const path of [home, images, mountpoint, join(home, 'run'), image])
    await chown(path, NOBODY, NOBODY);
  const asUser = (args: readonly string[]): Promise<Finished> =>
    run('setpriv', [
      '--reuid',
      'nobody',
      '--regid',
      'nogroup',
      '--clear-groups',
      'env',
      `XDG_RUNTIME_DIR=${join(home, 'run')}`,
      `HOME=${home}`,
      ...args,
    ]);
  const vdiskfs = (...args: string[]): Promise<Finished> =>
    asUser([process.execPath, program, ...args]);

  cleanup.after(async () => void (await run('umount', ['-l', mountpoint])));
  const done = await vdiskfs('mount', images, mountpoint);
  assert.equal(done.status, 0, done.stderr);
  const mounts = await readFile('/proc/self/mounts', 'utf8');
  assert.match(
    mounts,
    new RegExp(`^${images} ${mountpoint} fuse\\.vdiskfs .*user_id=${NOBODY}`, 'm'),
  );

  const disk = join(mountpoint, 'disk.raw');
  const write = await asUser([
    'dd',
    'if=/dev/urandom',
    `of=${disk}`,
    'bs=64k',
    'count=32',
    'conv=notrunc,fsync',
    'status=none',
  ]);
  assert.equal(write.status, 0, write.stderr);
  const sum = await asUser(['sha256sum', disk]);
  assert.equal(sum.status, 0);
  const rootSees = await run('stat', [disk]);
  assert.notEqual(rootSees.status, 0, 'without --allow-other not even root enters');
  const status = await vdiskfs('status', mountpoint);
  assert.match(status.stdout, /disk\.raw/);

  assert.equal((await vdiskfs('umount', mountpoint)).status, 0);
  assert.ok(!(await readFile('/proc/self/mounts', 'utf8')).includes(mountpoint));
  await assertClean(image);
  const flat = join(root, 'flat.raw');
  await qemuImg(['convert', '-O', 'raw', image, flat]);
  assert.equal((await tool('sha256sum', [flat])).slice(0, 64), sum.stdout.slice(0, 64));
});
