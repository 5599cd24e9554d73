/** What lies in the runtime directory is a help, never a need: a mount whose directory is full or gone serves on. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { CleanupStack } from '../support/cleanup-stack.ts';
import { tool } from '../support/file-tools.ts';
import { assertClean, qemuImg } from '../support/qemu-img.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { PROGRAM, run } from '../support/vdiskfs.ts';

/** Children of a process, by /proc. */
const childrenOf = async (pid: number): Promise<number[]> =>
  (await tool('cat', [`/proc/${pid}/task/${pid}/children`])).trim().split(' ').map(Number);

test('a runtime directory that is full, or removed, stops no read and no write, nor the next engine', async (t) => {
  const cleanup = new CleanupStack(t);
  const root = await scratchDirectory(cleanup);
  for (const name of ['images', 'mnt', 'run']) await mkdir(join(root, name));
  const image = join(root, 'images/disk.qcow2');
  await qemuImg(['create', '-q', '-f', 'qcow2', image, '64M']);
  // A runtime directory of its own, small, in a mount namespace of its own.
  const script =
    'mkdir -p /run/vdiskfs && mount -t tmpfs -o size=64k,mode=700 none /run/vdiskfs && exec "$@"';
  const line = ['-m', 'sh', '-c', script, 'sh', process.execPath, PROGRAM, 'mount', '-f'];
  const child = spawn('unshare', [...line, join(root, 'images'), join(root, 'mnt')], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  cleanup.after(async () => void child.kill('SIGKILL'));
  const ended = new Promise<number | null>((resolve) => child.once('exit', resolve));
  await new Promise((resolve) => child.stdout.once('data', resolve));
  const supervisor = child.pid ?? 0;
  const inside = (path: string): string => `/proc/${supervisor}/root${path}`;
  const disk = inside(join(root, 'mnt/disk.raw'));
  const write = (seek: number): Promise<string> =>
    tool(
      'dd',
      [
        'if=/dev/urandom',
        `of=${disk}`,
        'bs=64k',
        'count=64',
        `seek=${seek}`,
        'conv=notrunc',
        'oflag=direct',
      ],
      60_000,
    );
  const full = await run('dd', ['if=/dev/zero', `of=${inside('/run/vdiskfs/filler')}`, 'bs=4k']);
  assert.match(full.stderr, /No space left/);
  await write(0);
  await tool('sh', ['-c', `rm -rf ${inside('/run/vdiskfs')}/*`]);
  await write(100);
  await tool('cp', [disk, join(root, 'before.raw')]);
  const [engine = 0] = await childrenOf(supervisor);
  process.kill(engine, 'SIGKILL');
  await write(200);
  await tool('cp', [disk, join(root, 'after.raw')]);
  await tool('cmp', [
    '-n',
    String(200 * 65_536),
    join(root, 'before.raw'),
    join(root, 'after.raw'),
  ]);
  await sleep(100);
  child.kill('SIGTERM');
  assert.equal(await ended, 0);
  await assertClean(image);
  await qemuImg(['compare', '-f', 'qcow2', '-F', 'raw', image, join(root, 'after.raw')]);
});
