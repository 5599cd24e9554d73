/** The daemon behind a mount: how it starts, what it keeps, what happens when one of its processes dies, how it ends. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { mkdir, open, readdir, readFile, readlink, stat, writeFile } from 'node:fs/promises';
import { createConnection } from 'node:net';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { startTimeOf } from '../../src/daemon/process-identity.ts';
import { extendedAttribute } from '../../src/os/mounts.ts';
import { CleanupStack } from '../support/cleanup-stack.ts';
import { tool } from '../support/file-tools.ts';
import { attachLoop } from '../support/loop-device.ts';
import { assertClean, qemuImg, qemuIo } from '../support/qemu-img.ts';
import { type Cleanup, scratchDirectory } from '../support/scratch.ts';
import { type Finished, PROGRAM, run, vdiskfs, vdiskfsJson } from '../support/vdiskfs.ts';

interface Status {
  readonly pid: number;
  readonly 'supervisor-pid': number;
  readonly generation: number;
  readonly views: readonly { readonly name: string; readonly error: string | null }[];
}

interface Daemon {
  readonly root: string;
  readonly images: string;
  readonly mountpoint: string;
  readonly disk: string;
  readonly cleanup: Cleanup;
  status(): Promise<Status>;
}

/** A directory with one qcow2 image; not mounted yet, and taken down whatever happens. */
const prepared = async (t: Cleanup): Promise<Daemon> => {
  const cleanup = new CleanupStack(t);
  const root = await scratchDirectory(cleanup);
  const images = join(root, 'images');
  const mountpoint = join(root, 'mnt');
  await mkdir(images);
  await mkdir(mountpoint);
  await qemuImg(['create', '-q', '-f', 'qcow2', join(images, 'disk.qcow2'), '8M']);
  cleanup.after(async () => {
    await vdiskfs(['umount', '--lazy', mountpoint]);
  });
  const status = async (): Promise<Status> => (await vdiskfsJson(['status', mountpoint])) as Status;
  return { root, images, mountpoint, disk: join(mountpoint, 'disk.raw'), cleanup, status };
};

const mounted = async (t: Cleanup, args: readonly string[] = []): Promise<Daemon> => {
  const d = await prepared(t);
  const done = await vdiskfs(['mount', ...args, d.images, d.mountpoint]);
  assert.equal(done.status, 0, done.stderr);
  return d;
};

const isAlive = (pid: number): boolean =>
  existsSync(`/proc/${pid}`) && !/^State:\s+Z/m.test(statusText(pid));
const statusText = (pid: number): string => {
  try {
    return readFileSync(`/proc/${pid}/status`, 'utf8');
  } catch {
    return 'State: Z';
  }
};

const until = async (
  what: string,
  holds: () => boolean | Promise<boolean>,
  ms = 10_000,
): Promise<void> => {
  for (let waited = 0; !(await holds()); waited += 20) {
    assert.ok(waited < ms, `${what}, within ${ms} ms`);
    await sleep(20);
  }
};

const isMounted = async (mountpoint: string): Promise<boolean> =>
  (await readFile('/proc/self/mounts', 'utf8')).includes(` ${mountpoint} fuse.vdiskfs `);

const writeByte = async (path: string, value: number): Promise<void> => {
  const file = await open(path, 'r+');
  try {
    await file.write(new Uint8Array(4096).fill(value), 0, 4096, 4096);
    await file.sync();
  } finally {
    await file.close();
  }
};

const readByte = async (path: string): Promise<number | undefined> => {
  const file = await open(path, 'r');
  try {
    const bytes = new Uint8Array(1);
    await file.read(bytes, 0, 1, 5000);
    return bytes[0];
  } finally {
    await file.close();
  }
};

test('mount returns when the mount is usable, and its daemon keeps nothing of the caller', async (t) => {
  const d = await prepared(t);
  // The shell's substitution ends only when nobody holds its pipe; descriptor 9 is one that the caller left open.
  const line = `x=$(exec 9< /etc/hostname; "$0" "$1" mount "$2" "$3"); echo "out:$x"`;
  const begun = Date.now();
  const done = await run('bash', ['-c', line, process.execPath, PROGRAM, d.images, d.mountpoint]);
  assert.equal(done.stdout, 'out:\n');
  assert.ok(Date.now() - begun < 5000);
  assert.equal((await stat(d.disk)).size, 8 << 20);
  const { pid, 'supervisor-pid': supervisor } = await d.status();
  for (const process of [pid, supervisor]) {
    const targets = await Promise.all(
      (await readdir(`/proc/${process}/fd`)).map((fd) =>
        readlink(`/proc/${process}/fd/${fd}`).catch(() => ''),
      ),
    );
    assert.ok(!targets.includes('/etc/hostname'), `${process} keeps the caller's descriptor`);
    assert.equal(await readlink(`/proc/${process}/cwd`), '/');
  }
  assert.equal((await vdiskfs(['umount', d.mountpoint])).status, 0);
  assert.ok(!isAlive(pid) && !isAlive(supervisor));
});

test('in the foreground it says ready first, and SIGTERM unmounts and exits 0', async (t) => {
  const d = await prepared(t);
  const child = spawn(process.execPath, [PROGRAM, 'mount', '-f', d.images, d.mountpoint], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const ended = new Promise<number | null>((resolve) => child.once('exit', resolve));
  const first = await new Promise<string>((resolve) =>
    child.stdout.once('data', (c: Buffer) => resolve(c.toString())),
  );
  assert.equal(first, `ready ${d.mountpoint}\n`);
  await writeByte(d.disk, 77);
  child.kill('SIGTERM');
  assert.equal(await ended, 0);
  assert.ok(!(await isMounted(d.mountpoint)));
  await assertClean(join(d.images, 'disk.qcow2'));
});

test('umount of a busy mount waits, then names the process; the mount goes on', async (t) => {
  const d = await mounted(t);
  const holder = spawn('sleep', ['60'], {
    stdio: ['ignore', 'ignore', 'ignore'],
    cwd: d.mountpoint,
  });
  d.cleanup.after(async () => void holder.kill('SIGKILL'));
  const begun = Date.now();
  const busy = await vdiskfs(['umount', d.mountpoint]);
  assert.equal(busy.status, 1);
  assert.match(busy.stderr, new RegExp(`process ${holder.pid} \\(sleep\\)`));
  assert.ok(Date.now() - begun >= 4500);
  await writeByte(d.disk, 1);
  holder.kill('SIGKILL');
  assert.equal((await vdiskfs(['umount', d.mountpoint])).status, 0);
});

test('a loop device that holds a view is named too', async (t) => {
  const d = await mounted(t);
  const loop = await attachLoop(d.cleanup, d.disk, { directIo: false });
  const busy = await vdiskfs(['umount', d.mountpoint]);
  assert.equal(busy.status, 1);
  assert.match(busy.stderr, new RegExp(`loop device ${loop.path}`));
  await loop.detach();
  assert.equal((await vdiskfs(['umount', d.mountpoint])).status, 0);
});

test('what is no mount of ours is left alone', async (t) => {
  const d = await prepared(t);
  for (const path of [d.mountpoint, '/proc', join(d.root, 'missing')]) {
    const done = await vdiskfs(['umount', path]);
    assert.equal(done.status, 1);
    assert.match(done.stderr, /is no vdiskfs mount/);
  }
});

test('a lazy umount detaches at once, and open files go on', async (t) => {
  const d = await mounted(t);
  const { 'supervisor-pid': supervisor } = await d.status();
  const file = await open(d.disk, 'r+');
  assert.equal((await vdiskfs(['umount', '--lazy', d.mountpoint])).status, 0);
  assert.ok(!(await isMounted(d.mountpoint)));
  await file.write(new Uint8Array(512).fill(5), 0, 512, 0);
  await file.sync();
  await file.close();
  await until('the daemon ends with the last handle', () => !isAlive(supervisor));
  await assertClean(join(d.images, 'disk.qcow2'));
});

test('SIGKILL of the engine: another takes over, nothing answered is lost, and the image is never unlocked', async (t) => {
  const d = await mounted(t);
  const image = join(d.images, 'disk.qcow2');
  let refusals = 0;
  let trying = true;
  const intruder = (async () => {
    while (trying) {
      const done = await run('qemu-io', ['-f', 'qcow2', '-c', 'write 0 512', image]);
      assert.match(done.stderr + done.stdout, /lock/, 'QEMU is refused all the time');
      refusals++;
    }
  })();
  for (let kill = 1; kill <= 3; kill++) {
    await writeByte(d.disk, kill);
    const { pid } = await d.status();
    process.kill(pid, 'SIGKILL');
    await until('another engine serves', async () => {
      const status = await d.status().catch(() => null);
      return status !== null && status.pid !== pid && status.generation >= kill;
    });
    assert.equal(await readByte(d.disk), kill);
  }
  trying = false;
  await intruder;
  assert.ok(refusals > 0);
  assert.equal((await vdiskfs(['umount', d.mountpoint])).status, 0);
  await assertClean(image);
});

test('SIGKILL of the supervisor ends the engine, and the next mount cleans up what is left', async (t) => {
  const d = await mounted(t);
  await writeByte(d.disk, 9);
  const { pid, 'supervisor-pid': supervisor } = await d.status();
  process.kill(supervisor, 'SIGKILL');
  await until('the engine ends', () => !isAlive(pid));
  assert.ok(await isMounted(d.mountpoint), 'the dead mount is still there');
  // Who only reads takes nothing away.
  await assertClean(join(d.images, 'disk.qcow2'));
  const again = await vdiskfs(['mount', d.images, d.mountpoint]);
  assert.equal(again.status, 0, again.stderr);
  assert.equal(await readByte(d.disk), 9);
  assert.equal((await vdiskfs(['umount', d.mountpoint])).status, 0);
  await assertClean(join(d.images, 'disk.qcow2'));
});

for (const next of [
  'the next engine',
  'an engine that takes over from it',
  'an engine after its death',
])
  test(`what QEMU has written after the daemon was killed is not touched by ${next}`, async (t) => {
    const d = await mounted(t);
    const image = join(d.images, 'disk.qcow2');
    const answered = join(d.root, 'answered');
    await writeFile(answered, new Uint8Array(65_536).fill(5));
    const direct = ['bs=64k', 'seek=16', 'oflag=direct', 'conv=notrunc'];
    await tool('dd', [`if=${answered}`, `of=${d.disk}`, ...direct]);
    const { pid, 'supervisor-pid': supervisor } = await d.status();
    process.kill(supervisor, 'SIGKILL');
    // Locks go with the last thread.
    const isGone = (process: number): boolean => startTimeOf(process) === null;
    await until('both have ended', () => isGone(pid) && isGone(supervisor));
    // It takes the host clusters that were taken for what was answered and not synced.
    await qemuIo(image, ['write -P 7 4M 1M']);
    const again = await vdiskfs(['mount', d.images, d.mountpoint]);
    assert.equal(again.status, 0, again.stderr);
    // The image is locked again from here, and nobody has opened it yet.
    if (next === 'an engine that takes over from it')
      assert.equal((await vdiskfs(['restart', d.mountpoint])).status, 0);
    if (next === 'an engine after its death') process.kill((await d.status()).pid, 'SIGKILL');
    await tool('dd', [`if=${answered}`, `of=${d.disk}`, ...direct]);
    assert.equal((await vdiskfs(['umount', d.mountpoint])).status, 0);
    await qemuIo(image, ['read -P 7 4M 1M']);
    await assertClean(image);
  });

test('an umount from outside flushes and ends the daemon', async (t) => {
  const d = await mounted(t);
  const file = await open(d.disk, 'r+');
  await file.write(new Uint8Array(70_000).fill(6), 0, 70_000, 4096);
  await file.close();
  const { pid, 'supervisor-pid': supervisor } = await d.status();
  assert.equal((await run('umount', [d.mountpoint])).status, 0);
  await until('both processes end', () => !isAlive(pid) && !isAlive(supervisor));
  await assertClean(join(d.images, 'disk.qcow2'));
  const flat = join(d.root, 'flat.raw');
  await qemuImg(['convert', '-O', 'raw', join(d.images, 'disk.qcow2'), flat]);
  assert.equal(await readByte(flat), 6);
});

const stopTwice = async (child: ChildProcess, d: Daemon): Promise<void> => {
  child.kill('SIGTERM');
  await sleep(700);
  assert.ok(await isMounted(d.mountpoint), 'a busy mount goes on');
  await writeByte(d.disk, 3);
  child.kill('SIGTERM');
};

test('SIGTERM to a busy mount goes on serving and says who holds it; asked again it is detached', async (t) => {
  const d = await prepared(t);
  const child = spawn(process.execPath, [PROGRAM, 'mount', '-f', d.images, d.mountpoint], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let log = '';
  child.stderr.on('data', (chunk: Buffer) => {
    log += chunk.toString();
  });
  const ended = new Promise<number | null>((resolve) => child.once('exit', resolve));
  await new Promise((resolve) => child.stdout.once('data', resolve));
  const holder = await open(d.disk, 'r');
  await stopTwice(child, d);
  await until('it is detached', async () => !(await isMounted(d.mountpoint)));
  await holder.close();
  assert.equal(await ended, 0);
  assert.match(log, /still mounted: process \d+ \(node\) holds/);
});

test('a directory mounts although an image cannot be opened, and says so; a single bad source does not', async (t) => {
  const d = await prepared(t);
  const bad = join(d.images, 'bad.qcow2');
  await writeFile(bad, Buffer.concat([Buffer.from('QFI\xfb', 'latin1'), Buffer.alloc(200, 1)]));
  const warned = await vdiskfs(['mount', d.images, d.mountpoint]);
  assert.equal(warned.status, 0);
  assert.match(warned.stderr, /bad\.qcow2/);
  assert.equal((await vdiskfs(['umount', d.mountpoint])).status, 0);
  const refused = await vdiskfs(['mount', bad, d.mountpoint]);
  assert.equal(refused.status, 1);
  assert.match(refused.stderr, /bad\.qcow2: header field/);
  assert.ok(!(await isMounted(d.mountpoint)));
});

test('options in both spellings; what is unknown is refused by name', async (t) => {
  const d = await prepared(t);
  const spelled = await vdiskfs([
    d.images,
    d.mountpoint,
    '-o',
    'ro,threads=3,noauto,x-systemd.automount',
  ]);
  assert.equal(spelled.status, 0, spelled.stderr);
  const status = (await vdiskfsJson(['status', d.mountpoint])) as {
    threads: number;
    'read-only': boolean;
  };
  assert.equal(status.threads, 3);
  assert.equal(status['read-only'], true);
  await assert.rejects(writeByte(d.disk, 1), /EROFS/);
  const second = await vdiskfs(['mount', d.images, d.mountpoint]);
  assert.equal(second.status, 1);
  assert.match(second.stderr, /is a vdiskfs mount already/);
  assert.equal((await vdiskfs(['umount', d.mountpoint])).status, 0);
  const wrong: readonly (readonly [string[], RegExp])[] = [
    [['--colour'], /colour/],
    [['-o', 'purple'], /-o purple: is no mount option/],
    [['--threads', '0'], /--threads/],
    [['--l2-cache-size', '12x'], /--l2-cache-size/],
  ];
  for (const [args, expected] of wrong) {
    const done: Finished = await vdiskfs(['mount', ...args, d.images, d.mountpoint]);
    assert.equal(done.status, 2, args.join(' '));
    assert.match(done.stderr, expected);
  }
});

test('status shows every view, in a table and as JSON', async (t) => {
  const d = await mounted(t);
  const table = await vdiskfs(['status', d.mountpoint]);
  assert.match(table.stdout, /disk\.raw\s+qcow2\s+8 MiB\s+.*writable/);
  const { views } = await d.status();
  assert.deepEqual(
    views.map((v) => [v.name, v.error]),
    [['disk.raw', null]],
  );
});

test('the control socket is private and survives garbage, a long line and many clients', async (t) => {
  const d = await mounted(t);
  const path = (await extendedAttribute(d.mountpoint, 'user.vdiskfs.socket')) ?? '';
  assert.match(path, /^\/run\/vdiskfs\/[0-9a-f]{16}\.sock$/);
  assert.equal((await stat('/run/vdiskfs')).mode & 0o777, 0o700);
  assert.equal((await stat(path)).mode & 0o777, 0o600);
  await Promise.all(
    Array.from({ length: 200 }, async (_, i) => {
      const client = createConnection(path);
      client.on('error', () => undefined);
      client.write(i % 2 === 0 ? '\xff\0{{{]\n"x"\nnull\n[]\n' : 'x'.repeat(100_000));
      await sleep(200);
      client.destroy();
    }),
  );
  assert.equal((await d.status()).views.length, 1);
});
