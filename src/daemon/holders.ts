/** Who holds a mount: processes with files, directories or mappings in it, loop devices over its views, mounts below it. */
import { spawn } from 'node:child_process';
import { readdir, readFile, readlink } from 'node:fs/promises';
import { join } from 'node:path';
import { readMountTable } from './mount-table.ts';

export interface Holder {
  readonly kind: 'process' | 'loop device' | 'mount';
  /** `1234 (qemu-system-x86_64)`, `/dev/loop0`, `/mnt/below`. */
  readonly name: string;
  /** The file it holds, or what is mounted. */
  readonly what: string;
}

const MAX_HOLDERS = 20;
const MAPS_PATIENCE_MS = 1000;
/** A line of grep over files of /proc. */
const MAPPING = /^\/proc\/(?<pid>\d+)\/maps:[^/]*(?<path>\/.*)$/;

const isBelow = (path: string, mountpoint: string): boolean =>
  path === mountpoint || path.startsWith(`${mountpoint}/`);

/**
 * Looks only at names that the kernel tells: nothing inside the mount is touched. At most 20. Mappings are looked at for a second: the
 * kernel does not tell those of a process that waits for a page, which may be one of this mount.
 */
export const holdersOf = async (mountpoint: string): Promise<readonly Holder[]> => {
  const found = [...(await loopHolders(mountpoint)), ...mountHolders(mountpoint)];
  const pids = (await readdir('/proc')).filter((name) => /^\d+$/.test(name));
  const held = new Map<string, string>();
  for (const pid of pids) {
    const what = await openIn(pid, mountpoint);
    if (what !== null) held.set(pid, what);
  }
  const others = pids.filter((pid) => !held.has(pid));
  for (const [pid, what] of await mappedIn(others, mountpoint)) held.set(pid, what);
  for (const [pid, what] of held) {
    const command = await readFile(`/proc/${pid}/comm`, 'utf8').catch(() => '?');
    found.push({ kind: 'process', name: `${pid} (${command.trim()})`, what });
  }
  return found.slice(0, MAX_HOLDERS);
};

/** `process 1234 (dd) holds /mnt/disk.raw, …`; `nobody that can be seen holds it` when the list is empty. */
export const describeHolders = (holders: readonly Holder[]): string =>
  holders.length === 0
    ? 'nobody that can be seen holds it'
    : holders.map((h) => `${h.kind} ${h.name} holds ${h.what}`).join(', ');

/** What a process has there as a directory of its own, its program, or an open file; null for nothing. */
const openIn = async (pid: string, mountpoint: string): Promise<string | null> => {
  const links = ['cwd', 'root', 'exe'].map((name) => `/proc/${pid}/${name}`);
  const descriptors = await readdir(`/proc/${pid}/fd`).catch(() => []);
  links.push(...descriptors.map((fd) => `/proc/${pid}/fd/${fd}`));
  for (const link of links) {
    const target = await readlink(link).catch(() => null);
    if (target !== null && isBelow(target, mountpoint)) return target;
  }
  return null;
};

// By another program, which can be killed while it waits for the kernel's answer.
const mappedIn = (pids: readonly string[], mountpoint: string): Promise<Map<string, string>> =>
  new Promise((resolve) => {
    const files = pids.map((pid) => `/proc/${pid}/maps`);
    const child = spawn('grep', ['-HsF', '--', `${mountpoint}/`, ...files], {
      stdio: ['ignore', 'pipe', 'ignore'],
      timeout: MAPS_PATIENCE_MS,
      killSignal: 'SIGKILL',
    });
    let text = '';
    child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
      text += chunk;
    });
    const end = (): void => {
      const held = new Map<string, string>();
      for (const line of text.split('\n')) {
        const { pid, path } = MAPPING.exec(line)?.groups ?? {};
        if (pid !== undefined && path !== undefined && isBelow(path, mountpoint))
          held.set(pid, path);
      }
      resolve(held);
    };
    child.once('error', end);
    child.once('close', end);
  });

const loopHolders = async (mountpoint: string): Promise<Holder[]> => {
  const names = (await readdir('/sys/block').catch(() => [])).filter((n) => n.startsWith('loop'));
  const found: Holder[] = [];
  for (const name of names) {
    const file = await readFile(join('/sys/block', name, 'loop/backing_file'), 'utf8').catch(
      () => null,
    );
    const what = file?.trim();
    if (what === undefined || !isBelow(what, mountpoint)) continue;
    found.push({ kind: 'loop device', name: `/dev/${name}`, what });
  }
  return found;
};

const mountHolders = (mountpoint: string): Holder[] =>
  readMountTable()
    .filter((m) => m.mountpoint !== mountpoint && isBelow(m.mountpoint, mountpoint))
    .map((m) => ({ kind: 'mount', name: m.mountpoint, what: m.source }));
