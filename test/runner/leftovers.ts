/** What a run of the tests may not leave behind: mounts, loop devices, processes, temporary files. */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, readlinkSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { runtimeDirectory } from '../../src/daemon/runtime-directory.ts';
import { mountsBelow } from '../support/mounts-below.ts';

/** Set in the environment of every test: processes that carry it are of this run. */
export const RUN_MARK = 'VDISKFS_TEST_RUN';
/** Each run has a temporary directory of its own, so that runs beside each other do not meet. */
const RUN_DIRECTORY = /^vdiskfs-run-(?<pid>\d+)$/;

const LOOK_MS = 10_000;

/** The temporary directory of this run. */
export const runDirectory = (): string => join(tmpdir(), `vdiskfs-run-${process.pid}`);

export interface Leftover {
  readonly what: string;
  readonly remove: () => void;
}

const runQuietly = (program: string, args: readonly string[]): void => {
  spawnSync(program, args, { stdio: 'ignore', timeout: 10_000 });
};

const loopDevices = (): { device: string; file: string }[] =>
  readdirSync('/sys/block')
    .filter((name) => name.startsWith('loop'))
    .flatMap((name) => {
      try {
        const file = readFileSync(`/sys/block/${name}/loop/backing_file`, 'utf8').trim();
        return [{ device: `/dev/${name}`, file }];
      } catch {
        return [];
      }
    });

/** Makes this run's temporary directory, and takes away those of runs that were killed. */
export const openRunDirectory = (): string => {
  for (const name of readdirSync(tmpdir())) {
    const pid = RUN_DIRECTORY.exec(name)?.groups?.['pid'];
    if (pid === undefined || existsSync(`/proc/${pid}`)) continue;
    removeLeftovers(leftoversBelow(join(tmpdir(), name)));
    rmSync(join(tmpdir(), name), { recursive: true, force: true });
  }
  mkdirSync(runDirectory(), { recursive: true });
  return runDirectory();
};

const runtimeFiles = (): string[] => {
  const directory = runtimeDirectory();
  if (!existsSync(directory)) return [];
  return readdirSync(directory, { withFileTypes: true, recursive: true })
    .filter((entry) => !entry.isDirectory())
    .map((entry) => join(entry.parentPath, entry.name));
};

/** Files of other mounts of this user, which were there before the run. */
const runtimeFilesBefore = new Set(runtimeFiles());

const isBelow = (path: string, directory: string): boolean => path.startsWith(`${directory}/`);

// By another program: reading the environment of a process that hangs in the kernel would hang this one as well.
const markedProcesses = (mark: string): { pid: number; command: string }[] => {
  const others = readdirSync('/proc').filter(
    (name) => /^\d+$/.test(name) && Number(name) !== process.pid,
  );
  const files = others.map((name) => `/proc/${name}/environ`);
  const found = spawnSync('grep', ['-lsF', '--', `${RUN_MARK}=${mark}`, ...files], {
    encoding: 'utf8',
    timeout: LOOK_MS,
    killSignal: 'SIGKILL',
  });
  return [...found.stdout.matchAll(/^\/proc\/(?<pid>\d+)\/environ$/gm)].flatMap((match) => {
    const pid = Number(match.groups?.['pid']);
    try {
      readlinkSync(`/proc/${pid}/exe`);
      const command = readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ').trim();
      return [{ pid, command }];
    } catch {
      return [];
    }
  });
};

/** In the order in which they can be removed. `mark`: the value of RUN_MARK of this run. */
export const findLeftovers = (mark: string): readonly Leftover[] => {
  const processes = markedProcesses(mark).map(({ pid, command }) => ({
    what: `process ${pid}: ${command}`,
    remove: (): void => void process.kill(pid, 'SIGKILL'),
  }));
  const files = runtimeFiles()
    .filter((path) => !runtimeFilesBefore.has(path))
    .map((path) => ({ what: `runtime file ${path}`, remove: () => rmSync(path, { force: true }) }));
  return [...leftoversBelow(runDirectory()), ...processes, ...files];
};

const leftoversBelow = (directory: string): Leftover[] => {
  const found: Leftover[] = mountsBelow(directory).map((m) => ({
    what: `mount of type ${m.type} at ${m.mountpoint}`,
    remove: () => runQuietly('umount', ['-i', '-l', m.mountpoint]),
  }));
  for (const { device, file } of loopDevices().filter((l) => isBelow(l.file, directory))) {
    const remove = (): void => runQuietly('losetup', ['-d', device]);
    found.push({ what: `loop device ${device} over ${file}`, remove });
  }
  for (const name of existsSync(directory) ? readdirSync(directory) : []) {
    const path = join(directory, name);
    const remove = (): void => rmSync(path, { recursive: true, force: true });
    found.push({ what: `temporary file ${path}`, remove });
  }
  return found;
};

/** Removes them; what cannot be removed stays, and is found again. */
export const removeLeftovers = (leftovers: readonly Leftover[]): void => {
  for (const { remove } of leftovers) {
    try {
      remove();
    } catch {
      // Reported already; a process may have ended by itself.
    }
  }
};
