/** The mounts of this machine, as /proc/self/mountinfo says. */
import { readFileSync } from 'node:fs';
import { realpath } from 'node:fs/promises';

/** Of our mounts. */
export const FILE_SYSTEM_TYPE = 'fuse.vdiskfs';

export interface MountedFileSystem {
  readonly source: string;
  readonly mountpoint: string;
  readonly type: string;
  /** `major:minor`. */
  readonly device: string;
}

/** The kernel writes blanks in names as `\040` and the like. */
const unescapeOctal = (text: string): string =>
  text.replace(/\\([0-7]{3})/g, (_, digits: string) =>
    String.fromCharCode(Number.parseInt(digits, 8)),
  );

/** In the order of mounting. */
export const readMountTable = (): readonly MountedFileSystem[] =>
  readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => {
      // id, parent, device, root, mountpoint, options, optional fields, '-', type, source, options
      const fields = line.split(' ');
      const [type = '', source = ''] = fields.slice(fields.indexOf('-') + 1).map(unescapeOctal);
      return {
        source,
        mountpoint: unescapeOctal(fields[4] ?? ''),
        type,
        device: fields[2] ?? '',
      };
    });

/** What is mounted on top at a path; null when nothing is. */
export const mountedAt = (realPath: string): MountedFileSystem | null =>
  readMountTable().findLast((m) => m.mountpoint === realPath) ?? null;

export const vdiskfsMounts = (): readonly MountedFileSystem[] =>
  readMountTable().filter((m) => m.type === FILE_SYSTEM_TYPE);

/** Whether a path lies in a mount of ours. */
export const isView = async (path: string): Promise<boolean> => {
  const real = await realpath(path).catch(() => null);
  return real !== null && vdiskfsMounts().some((m) => real.startsWith(`${m.mountpoint}/`));
};
