/** A mount outlives its engine and its supervisor: what programs see, and what is told. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { CleanupStack } from '../support/cleanup-stack.ts';
import { tool } from '../support/file-tools.ts';
import { eventually, type Mounted, mountImages } from '../support/mounted.ts';
import { assertClean, qemuImg } from '../support/qemu-img.ts';
import { type Cleanup, scratchDirectory } from '../support/scratch.ts';
import { StandInManager } from '../support/stand-in-manager.ts';
import { PROGRAM, run, vdiskfs, vdiskfsJson } from '../support/vdiskfs.ts';

/** The machine may be busy; what is promised is in docs/OPERATING.md. */
const PATIENCE_MS = 60_000;
const STUCK_SERVER = fileURLToPath(new URL('../support/stuck-server.js', import.meta.url));

interface Status {
  readonly pid: number;
  readonly 'supervisor-pid': number;
  readonly generation: number;
  readonly views: readonly { readonly name: string; readonly error: string | null }[];
}

interface Place {
  readonly cleanup: CleanupStack;
  readonly root: string;
  readonly images: string;
  readonly mountpoint: string;
  readonly status: () => Promise<Status>;
}

const placeWith = async (t: Cleanup, names: readonly string[], size = '64M'): Promise<Place> => {
  const cleanup = new CleanupStack(t);
  const root = await scratchDirectory(cleanup);
  const images = join(root, 'images');
  const mountpoint = join(root, 'mnt');
  for (const path of [images, mountpoint]) await mkdir(path);
  for (const name of names)
    await qemuImg(['create', '-q', '-f', 'qcow2', join(images, `${name}.qcow2`), size]);
  const status = async (): Promise<Status> => (await vdiskfsJson(['status', mountpoint])) as Status;
  return { cleanup, root, images, mountpoint, status };
};

const mountOf = ({ cleanup, images, mountpoint }: Place, ...args: string[]): Promise<Mounted> =>
  mountImages(cleanup, { backend: 'kernel', sources: [images], mountpoint, args });

/** The engine of this generation, or a later one, serves. */
const untilGeneration = async (place: Place, generation: number): Promise<Status> => {
  for (const end = Date.now() + PATIENCE_MS; ; await sleep(50)) {
    const status = await place.status().catch(() => null);
    if (status !== null && status.generation >= generation) return status;
    assert.ok(Date.now() < end, `engine ${generation} serves within ${PATIENCE_MS} ms`);
  }
};

/** fio's own check of what it wrote, through direct I/O of depth 16; goes on until it is told to stop. */
const fioVerify = (path: string): Promise<string> =>
  tool(
    'fio',
    [
      '--name=x',
      `--filename=${path}`,
      '--rw=randwrite',
      '--bs=4k',
      '--size=2m',
      '--offset=4m',
      '--loops=2',
      '--direct=1',
      '--ioengine=libaio',
      '--iodepth=16',
      '--verify=crc32c',
      '--verify_fatal=1',
      '--verify_state_save=0',
      '--thinktime=500',
    ],
    180_000,
  );

test('restart swaps the engine under load: no error, nothing lost, the image never unlocked', async (t) => {
  const place = await placeWith(t, ['disk']);
  const mounted = await mountOf(place);
  const before = await place.status();
  const image = join(place.images, 'disk.qcow2');
  let working = true;
  const fio = fioVerify(mounted.path('disk.raw')).finally(() => {
    working = false;
  });
  const intruder = (async () => {
    for (; working; await sleep(100)) {
      const done = await run('qemu-io', ['-f', 'qcow2', '-c', 'write 0 512', image]);
      assert.match(done.stderr + done.stdout, /lock/, 'QEMU is refused all the time');
    }
  })();
  await sleep(500);
  for (let i = 1; i <= 2; i++) {
    const done = await vdiskfs(['restart', mounted.mountpoint], { timeoutMs: PATIENCE_MS });
    assert.equal(done.status, 0, done.stderr);
    const now = await place.status();
    assert.equal(now['supervisor-pid'], before['supervisor-pid']);
    assert.equal(now.generation, i);
  }
  await fio;
  await intruder;
  await mounted.unmount();
  await assertClean(image);
});

test('restart is refused, and the engine stays, where it would be no swap', async (t) => {
  const place = await placeWith(t, ['disk']);
  const none = await vdiskfs(['restart', place.mountpoint]);
  assert.equal(none.status, 1);
  assert.match(none.stderr, /is no vdiskfs mount/);
  const env = { VDISKFS_WITHHOLD_INIT: 'HAS_RESEND' };
  const { pid, child, ended } = await startService(place, {}, env);
  const done = await vdiskfs(['restart', place.mountpoint]);
  assert.equal(done.status, 1);
  assert.match(done.stderr, /does not repeat requests/);
  assert.equal((await place.status()).pid, pid);
  child.kill('SIGTERM');
  assert.equal(await ended, 0);
});

interface Serviced {
  readonly manager: StandInManager;
  readonly child: ChildProcess;
  readonly ended: Promise<number | null>;
  readonly pid: number;
  readonly log: () => string;
}

const startService = async (
  place: Place,
  earlier: { readonly manager?: StandInManager },
  env: Readonly<Record<string, string>> = {},
  sources: readonly string[] = [place.images],
): Promise<Serviced> => {
  const { cleanup, mountpoint } = place;
  if (earlier.manager === undefined)
    cleanup.after(async () => void (await run('umount', ['-l', mountpoint])));
  const manager = earlier.manager ?? new StandInManager(join(place.root, 'notify'), cleanup);
  manager.received.length = 0;
  const line = [process.execPath, PROGRAM, 'mount', '-f', ...sources, mountpoint];
  const child = manager.start(line, env);
  cleanup.after(async () => void child.kill('SIGKILL'));
  let log = '';
  child.stderr?.on('data', (chunk: Buffer) => {
    log += chunk.toString('utf8');
  });
  const ended = new Promise<number | null>((resolve) => child.once('exit', resolve));
  await manager.until('READY', '1', PATIENCE_MS);
  const { pid } = await place.status();
  return { manager, child, ended, pid, log: () => log };
};

/**
 * A program with a file of the mount open. Not this process: closing its copy of the descriptor, a new supervisor would
 * wait for itself.
 */
const holdOpen = (
  { cleanup }: Place,
  path: string,
): { append: (text: string) => Promise<void>; close: () => Promise<void> } => {
  const script = 'exec 9<>"$0"; while read -r line; do printf %s "$line" >&9; echo done; done';
  const child = spawn('bash', ['-c', script, path], { stdio: ['pipe', 'pipe', 'inherit'] });
  cleanup.after(async () => void child.kill('SIGKILL'));
  const ended = new Promise<void>((resolve) => child.once('exit', () => resolve()));
  return {
    append: async (text) => {
      const done = new Promise((resolve) => child.stdout.once('data', resolve));
      child.stdin.write(`${text}\n`);
      await done;
    },
    close: async () => {
      child.stdin.end();
      await ended;
    },
  };
};

test('SIGKILL of the supervisor of a service: the next one takes the mount up, and programs see a pause', async (t) => {
  const place = await placeWith(t, ['disk', 'other']);
  const image = join(place.images, 'disk.qcow2');
  let service = await startService(place, {});
  const { manager } = service;
  assert.deepEqual(
    new Set(manager.store.map((s) => s.name.replace(/-\d+-\d+\.[\da-f-]{36}$/, ''))),
    new Set(['vdiskfs-state', 'vdiskfs-fuse', 'vdiskfs-lock']),
  );
  const fio = fioVerify(join(place.mountpoint, 'disk.raw'));
  const held = holdOpen(place, join(place.mountpoint, 'other.raw'));
  for (let round = 1; round <= 2; round++) {
    await sleep(500);
    await held.append(`round ${round};`);
    service.child.kill('SIGKILL');
    await service.ended;
    const intruder = await run('qemu-io', ['-f', 'qcow2', '-c', 'write 0 512', image]);
    assert.match(intruder.stderr + intruder.stdout, /lock/, 'nobody gets in between');
    service = await startService(place, { manager });
    assert.equal((await place.status()).generation, round);
  }
  await fio;
  await held.close();
  const kept = await tool('head', ['-c', '16', join(place.mountpoint, 'other.raw')]);
  assert.equal(kept, 'round 1;round 2;');
  service.child.kill('SIGTERM');
  assert.equal(await service.ended, 0, service.log());
  await eventually('the store is empty', async () => manager.store.length === 0);
  await assertClean(image);
  await assertClean(join(place.images, 'other.qcow2'));
  const free = await run('qemu-io', ['-f', 'qcow2', '-c', 'write 0 512', image]);
  assert.equal(free.status, 0, free.stderr);
});

test('what the store keeps of a mount that is gone is let go, and the service mounts afresh', async (t) => {
  const place = await placeWith(t, ['disk']);
  const first = await startService(place, {});
  first.child.kill('SIGKILL');
  await first.ended;
  await tool('umount', ['-l', place.mountpoint]);
  const { manager, child, ended, log } = await startService(place, { manager: first.manager });
  assert.match(log(), /belongs to no mount/);
  assert.equal((await place.status()).generation, 0);
  child.kill('SIGTERM');
  assert.equal(await ended, 0);
  await eventually('the store is empty', async () => manager.store.length === 0);
});

/** Mounts a view `stuck.raw` whose reads do not end until the server is told. */
const stuckFile = async (place: Place): Promise<{ path: string; letGo: () => void }> => {
  const stuck = join(place.root, 'stuck');
  await mkdir(stuck);
  const server = spawn(process.execPath, [STUCK_SERVER, stuck], {
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  place.cleanup.after(async () => {
    server.stdin.end();
    await run('umount', ['-l', stuck]);
    server.kill('SIGKILL');
  });
  await new Promise((resolve) => server.stdout.once('data', resolve));
  return { path: join(stuck, 'stuck.raw'), letGo: () => server.stdin.end() };
};

const directRead = (path: string): Promise<{ status: number | null; stderr: string }> =>
  run('dd', [`if=${path}`, 'of=/dev/null', 'bs=4k', 'count=1', 'iflag=direct'], {
    timeoutMs: 4 * PATIENCE_MS,
  });

test('a kernel that does not repeat requests: what is in flight ends with an error, and the mount goes on', async (t) => {
  const place = await placeWith(t, []);
  const stuck = await stuckFile(place);
  const env = { VDISKFS_WITHHOLD_INIT: 'HAS_RESEND' };
  const service = await startService(place, {}, env, [`stuck=${stuck.path}`]);
  const read = directRead(join(place.mountpoint, 'stuck.raw'));
  await sleep(1500);
  process.kill(service.pid, 'SIGKILL');
  const { status, stderr } = await read;
  assert.notEqual(status, 0);
  assert.match(stderr, /abort|connection/i);
  await untilGeneration(place, 1);
  stuck.letGo();
  assert.equal((await directRead(join(place.mountpoint, 'stuck.raw'))).status, 0);
  service.child.kill('SIGTERM');
  assert.equal(await service.ended, 0);
});
