/** Who holds a mount: processes with files, directories or mappings in it, loop devices over its views, mounts below it. */
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

const isBelow = (path: string, mountpoint: string): boolean =>
  path === mountpoint || path.startsWith(`${mountpoint}/`);

/** Looks only at names that the kernel tells: nothing inside the mount is touched. At most 20. */
export const holdersOf = async (mountpoint: string): Promise<readonly Holder[]> => {
  const found = [...(await loopHolders(mountpoint)), ...mountHolders(mountpoint)];
  const pids = (await readdir('/proc')).filter((name) => /^\d+$/.test(name));
  for (const pid of pids) {
    if (found.length >= MAX_HOLDERS) break;
    const what = await heldBy(pid, mountpoint);
    if (what === null) continue;
    const command = await readFile(`/proc/${pid}/comm`, 'utf8').catch(() => '?');
    found.push({ kind: 'process', name: `${pid} (${command.trim()})`, what });
  }
  return found;
};

/** `process 1234 (dd) holds /mnt/disk.raw, …`; `nobody that can be seen holds it` when the list is empty. */
export const describeHolders = (holders: readonly Holder[]): string =>
  holders.length === 0
    ? 'nobody that can be seen holds it'
    : holders.map((h) => `${h.kind} ${h.name} holds ${h.what}`).join(', ');

const heldBy = async (pid: string, mountpoint: string): Promise<string | null> => {
  const links = ['cwd', 'root', 'exe'].map((name) => `/proc/${pid}/${name}`);
  const descriptors = await readdir(`/proc/${pid}/fd`).catch(() => []);
  links.push(...descriptors.map((fd) => `/proc/${pid}/fd/${fd}`));
  for (const link of links) {
    const target = await readlink(link).catch(() => null);
    if (target !== null && isBelow(target, mountpoint)) return target;
  }
  const maps = await readFile(`/proc/${pid}/maps`, 'utf8').catch(() => '');
  const mapped = maps.split('\n').map((line) => line.slice(line.indexOf('/')));
  return mapped.find((path) => path.startsWith('/') && isBelow(path, mountpoint)) ?? null;
};

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
