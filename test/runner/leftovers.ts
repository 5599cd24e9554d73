/** What a run of the tests may not leave behind: mounts, loop devices, processes, temporary files. */
import { spawnSync } from 'node:child_process';
import { readdirSync, readFileSync, readlinkSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** Set in the environment of every test: processes that carry it are of this run. */
export const RUN_MARK = 'VDISKFS_TEST_RUN';
export const TEMPORARY_PREFIX = 'vdiskfs-test-';

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

const mounts = (): { mountpoint: string; type: string }[] =>
  readFileSync('/proc/self/mounts', 'utf8')
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => {
      const [, mountpoint = '', type = ''] = line.split(' ');
      return { mountpoint: mountpoint.replaceAll('\\040', ' '), type };
    });

const inTemporary = (path: string): boolean => path.includes(`/${TEMPORARY_PREFIX}`);

const markedProcesses = (mark: string): { pid: number; command: string }[] =>
  readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name) && Number(name) !== process.pid)
    .flatMap((name) => {
      try {
        const environment = readFileSync(`/proc/${name}/environ`, 'utf8');
        if (!environment.split('\0').includes(`${RUN_MARK}=${mark}`)) return [];
        readlinkSync(`/proc/${name}/exe`);
        const command = readFileSync(`/proc/${name}/cmdline`, 'utf8').replaceAll('\0', ' ').trim();
        return [{ pid: Number(name), command }];
      } catch {
        return [];
      }
    });

/** In the order in which they can be removed. `mark`: the value of RUN_MARK of this run. */
export const findLeftovers = (mark: string): readonly Leftover[] => {
  const below = mounts().filter((m) => inTemporary(m.mountpoint));
  const found: Leftover[] = below.reverse().map((m) => ({
    what: `mount of type ${m.type} at ${m.mountpoint}`,
    remove: () => runQuietly('umount', ['-i', '-l', m.mountpoint]),
  }));
  for (const { device, file } of loopDevices().filter((l) => inTemporary(l.file))) {
    const remove = (): void => runQuietly('losetup', ['-d', device]);
    found.push({ what: `loop device ${device} over ${file}`, remove });
  }
  for (const { pid, command } of markedProcesses(mark)) {
    found.push({ what: `process ${pid}: ${command}`, remove: () => process.kill(pid, 'SIGKILL') });
  }
  for (const name of readdirSync(tmpdir()).filter((n) => n.startsWith(TEMPORARY_PREFIX))) {
    const path = join(tmpdir(), name);
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
