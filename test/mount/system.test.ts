/** vdiskfs on a system: installed below a prefix, called by mount(8), watched by a service manager. */
import assert from 'node:assert/strict';
import type { ChildProcess } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { before, suite, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { CleanupStack } from '../support/cleanup-stack.ts';
import { eventually } from '../support/mounted.ts';
import { assertClean, qemuImg } from '../support/qemu-img.ts';
import { type Cleanup, scratchDirectory, suiteDirectory } from '../support/scratch.ts';
import { StandInManager } from '../support/stand-in-manager.ts';
import { type Finished, PROGRAM, run, vdiskfs, vdiskfsJson } from '../support/vdiskfs.ts';

const PROJECT = fileURLToPath(new URL('../../..', import.meta.url));
const INSTALLER = join(PROJECT, 'dist/systemd/install-system.js');

/** Each of them gives a service a mount namespace of its own (systemd.exec(5)): its mounts would be seen by nobody. */
const NAMESPACING =
  /^(?:Protect(?:System|Home|Proc|KernelTunables|KernelModules|KernelLogs|ControlGroups)|Private(?:Tmp|Devices|Mounts|Users|IPC)|DynamicUser|ProcSubset|RootDirectory|RootImage|MountFlags|MountImages|BindPaths|BindReadOnlyPaths|TemporaryFileSystem|ReadWritePaths|ReadOnlyPaths|InaccessiblePaths|ExecPaths|NoExecPaths|ExtensionImages)=/m;

const install = async (prefix: string, ...args: string[]): Promise<void> => {
  const done = await run(process.execPath, [INSTALLER, '--prefix', prefix, ...args]);
  assert.equal(done.status, 0, done.stderr);
};

suite('installed below a prefix', () => {
  const directory = suiteDirectory();
  let prefix = '';
  before(async () => {
    prefix = join(directory.path, 'prefix');
    await install(prefix);
  });

  test('the program runs by itself, and installing again replaces it', async () => {
    await install(prefix);
    const done = await run(join(prefix, 'bin/vdiskfs'), ['--version']);
    assert.match(done.stdout, /^vdiskfs \d/, done.stderr);
    assert.deepEqual((await readdir(join(prefix, 'lib'))).sort(), ['systemd', 'vdiskfs']);
  });

  test('systemd finds nothing wrong with the units, and the mount stays visible', async () => {
    const units = join(directory.path, 'units');
    await mkdir(units);
    const examples = join(PROJECT, 'systemd/examples');
    for (const name of ['mnt-disks.mount', 'mnt-disks.automount'])
      await writeFile(join(units, name), await readFile(join(examples, name)));
    const service = join(prefix, 'lib/systemd/system/vdiskfs@.service');
    const files = [service, join(units, 'mnt-disks.mount'), join(units, 'mnt-disks.automount')];
    const env = ['env', `MANPATH=${join(prefix, 'share/man')}`, 'SYSTEMD_LOG_LEVEL=warning'];
    const verified = await run(env[0] ?? '', [
      ...env.slice(1),
      'systemd-analyze',
      'verify',
      ...files,
    ]);
    assert.equal(verified.stderr + verified.stdout, '');
    assert.equal(verified.status, 0);
    const user = join(prefix, 'share/systemd/user/vdiskfs@.service');
    const forUser = await run('env', [
      ...env.slice(1),
      'XDG_RUNTIME_DIR=/tmp',
      'systemd-analyze',
      '--user',
      'verify',
      user,
    ]);
    assert.equal(forUser.status, 0, forUser.stderr);
    for (const path of [service, user])
      assert.doesNotMatch(await readFile(path, 'utf8'), NAMESPACING, path);
    const secure = await run('systemd-analyze', [
      'security',
      '--offline=true',
      '--threshold=50',
      service,
    ]);
    assert.equal(secure.status, 0, secure.stdout.slice(-300));
  });

  test('the man pages have no warnings', async () => {
    for (const page of ['man1/vdiskfs.1', 'man8/mount.vdiskfs.8']) {
      const path = join(prefix, 'share/man', page);
      const done = await run('man', ['--warnings', '-E', 'UTF-8', '-l', '-Tutf8', '-Z', path]);
      assert.equal(done.status, 0);
      assert.equal(done.stderr, '', page);
      assert.match(done.stdout, /vdiskfs/);
    }
  });

  test('mount(8) mounts through the helper, with its options as flags of the mount', async (t) => {
    const root = await scratchDirectory(t);
    for (const name of ['images', 'mnt']) await mkdir(join(root, name));
    const image = join(root, 'images/disk.qcow2');
    await qemuImg(['create', '-q', '-f', 'qcow2', image, '8M']);
    const image2 = join(root, 'images/a,b.qcow2');
    await qemuImg(['create', '-q', '-f', 'qcow2', image2, '1M']);
    // mount(8) looks for helpers in /sbin alone: in a mount namespace of its own, that is the prefix's.
    const script = `set -e
      mount --bind "$1/sbin" "$(realpath /sbin)"
      cd "$2"
      mount -v -t vdiskfs images mnt -o noexec,noatime,nodiratime,threads=3,user,noauto,nofail,_netdev,x-systemd.automount
      findmnt -n -o SOURCE,FSTYPE,OPTIONS --mountpoint "$2/mnt"
      echo hello | dd of=mnt/disk.raw conv=notrunc,fsync status=none
      umount mnt
      mount -t vdiskfs images mnt -o ro,sync,strictatime
      findmnt -n -o OPTIONS --mountpoint "$2/mnt"
      umount mnt
      mount -t vdiskfs "only=images/disk.qcow2" mnt -o ro,rw,backing_dir="$2/images"
      ls mnt; findmnt -n -o OPTIONS --mountpoint "$2/mnt"
      umount mnt
      ! mount -t vdiskfs images mnt -o purple || exit 9
      mount -s -t vdiskfs images mnt -o purple
      umount mnt
      mount -f -t vdiskfs images mnt
      ! mountpoint -q mnt
      echo done`;
    const done = await run('unshare', ['-m', 'sh', '-c', script, 'sh', prefix, root], {
      timeoutMs: 60_000,
    });
    assert.equal(done.status, 0, done.stderr + done.stdout);
    const lines = done.stdout.trim().split('\n');
    const first = lines.find((line) => line.includes('fuse.vdiskfs')) ?? '';
    assert.match(
      first,
      /^\S+\/images\s+fuse\.vdiskfs\s+rw,nosuid,nodev,noexec,noatime,nodiratime,/,
    );
    assert.match(done.stdout, /^ro,nosuid,nodev,(?!relatime|noatime).*sync/m);
    assert.match(done.stdout, /^only\.raw\nrw,nosuid,nodev,relatime/m);
    assert.match(done.stderr, /-o purple: is no mount option/);
    assert.equal(lines.at(-1), 'done');
    // umount(8) does not wait for the daemon, which holds the lock until everything is flushed.
    const isFree = async (): Promise<boolean> =>
      (await run('qemu-img', ['info', image])).status === 0;
    await eventually('the image is free', isFree);
    await assertClean(image);
  });

  test('the helper checks its line: 1 for a wrong one, 32 for a mount that fails', async (t) => {
    const root = await scratchDirectory(t);
    const helper = (...args: string[]): Promise<Finished> =>
      run(join(prefix, 'sbin/mount.vdiskfs'), args);
    const cases: readonly (readonly [string[], number, RegExp])[] = [
      [[root], 1, /a SOURCE and a MOUNTPOINT/],
      [[root, root, '-x'], 1, /-x: is no option of mount\.vdiskfs/],
      [[root, root, '-o'], 1, /-o: needs a value/],
      [[root, root, '-o', 'threads=900'], 1, /--threads/],
      [[root, root, '-fo', 'purple'], 1, /-o purple/],
      [[join(root, 'missing'), root], 32, /missing/],
      [['-f', join(root, 'missing'), root], 32, /missing/],
      [[root, join(root, 'nowhere'), '-t', 'fuse.vdiskfs', '-n'], 32, /nowhere/],
      [[root, root, '-sfnv', '-o', 'purple,ro', '-t', 'vdiskfs'], 0, /^$/],
    ];
    for (const [args, status, expected] of cases) {
      const done = await helper(...args);
      assert.equal(done.status, status, `${args.join(' ')}: ${done.stderr}`);
      assert.match(done.stderr, expected);
    }
  });

  test('uninstalling leaves nothing, and a prefix that units cannot name is refused', async () => {
    await install(prefix, '--uninstall');
    assert.deepEqual(await readdir(prefix), []);
    const spaced = await run(process.execPath, [INSTALLER, '--prefix', `${prefix} b`]);
    assert.equal(spaced.status, 1);
    assert.match(spaced.stderr, /prefix/);
  });
});

interface Serviced {
  readonly manager: StandInManager;
  readonly mountpoint: string;
  readonly child: ChildProcess;
  readonly ended: Promise<number | null>;
}

const asService = async (t: Cleanup, env: Readonly<Record<string, string>>): Promise<Serviced> => {
  const cleanup = new CleanupStack(t);
  const root = await scratchDirectory(cleanup);
  for (const name of ['images', 'mnt']) await mkdir(join(root, name));
  await qemuImg(['create', '-q', '-f', 'qcow2', join(root, 'images/disk.qcow2'), '8M']);
  const mountpoint = join(root, 'mnt');
  cleanup.after(async () => void (await vdiskfs(['umount', '--lazy', mountpoint])));
  const manager = new StandInManager(join(root, 'notify'), cleanup);
  const line = [process.execPath, PROGRAM, 'mount', '-f', join(root, 'images'), mountpoint];
  const child = manager.start(line, env);
  const ended = new Promise<number | null>((resolve) => child.once('exit', resolve));
  return { manager, mountpoint, child, ended };
};

test('a service is ready when its mount is usable, and says when it stops', async (t) => {
  const { manager, mountpoint, child, ended } = await asService(t, {});
  const ready = await manager.until('READY', '1');
  assert.ok(existsSync(join(mountpoint, 'disk.raw')));
  assert.match(ready.fields.get('STATUS') ?? '', new RegExp(mountpoint));
  assert.equal(manager.count('WATCHDOG'), 0, 'nobody asked for it');
  child.kill('SIGTERM');
  assert.equal(await ended, 0);
  await manager.until('STOPPING', '1');
});

test('the watchdog hears of a service as long as its engine answers', async (t) => {
  const { manager, mountpoint, child, ended } = await asService(t, { WATCHDOG_USEC: '800000' });
  await manager.until('READY', '1');
  await manager.until('WATCHDOG', '1');
  const { pid } = (await vdiskfsJson(['status', mountpoint])) as { pid: number };
  process.kill(pid, 'SIGSTOP');
  try {
    // What was answered before may still be on its way.
    await sleep(500);
    const before = manager.count('WATCHDOG');
    await sleep(1500);
    assert.equal(manager.count('WATCHDOG'), before, 'an engine that does not answer is not alive');
  } finally {
    process.kill(pid, 'SIGCONT');
  }
  const before = manager.count('WATCHDOG');
  for (let waited = 0; manager.count('WATCHDOG') < before + 3; waited += 20) {
    assert.ok(waited < 10_000, 'it is alive again');
    await sleep(20);
  }
  child.kill('SIGTERM');
  assert.equal(await ended, 0);
});
