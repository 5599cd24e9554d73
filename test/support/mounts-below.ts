/** What is mounted below a directory, as the kernel lists it: asking the file systems themselves may hang. */
import { readFileSync } from 'node:fs';

export interface MountBelow {
  readonly mountpoint: string;
  readonly type: string;
}

/** Last mounted first: in the order in which they can be unmounted. */
export const mountsBelow = (directory: string): readonly MountBelow[] =>
  readFileSync('/proc/self/mounts', 'utf8')
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => {
      const [, mountpoint = '', type = ''] = line.split(' ');
      return { mountpoint: mountpoint.replaceAll('\\040', ' '), type };
    })
    .filter(({ mountpoint }) => mountpoint.startsWith(`${directory}/`))
    .toReversed();
