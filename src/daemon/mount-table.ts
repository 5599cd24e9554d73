/** The mounts of this machine, as /proc/self/mounts says. */
import { readFileSync } from 'node:fs';
import { FILE_SYSTEM_TYPE } from './mounting.ts';

export interface MountedFileSystem {
  readonly source: string;
  readonly mountpoint: string;
  readonly type: string;
}

/** The kernel writes blanks in names as `\040` and the like. */
const unescapeOctal = (text: string): string =>
  text.replace(/\\([0-7]{3})/g, (_, digits: string) =>
    String.fromCharCode(Number.parseInt(digits, 8)),
  );

/** In the order of mounting. */
export const readMountTable = (): readonly MountedFileSystem[] =>
  readFileSync('/proc/self/mounts', 'utf8')
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => {
      const [source = '', mountpoint = '', type = ''] = line.split(' ').map(unescapeOctal);
      return { source, mountpoint, type };
    });

/** What is mounted on top at a path; null when nothing is. */
export const mountedAt = (realPath: string): MountedFileSystem | null =>
  readMountTable().findLast((m) => m.mountpoint === realPath) ?? null;

export const vdiskfsMounts = (): readonly MountedFileSystem[] =>
  readMountTable().filter((m) => m.type === FILE_SYSTEM_TYPE);
