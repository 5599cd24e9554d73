/** Mounting and unmounting: mount(2) as root, fusermount3 as an ordinary user. */
import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, constants, openSync } from 'node:fs';
import { BlockError, toBlockError } from '../base/block-error.ts';
import { receiveDescriptors, socketPair } from '../os/descriptor-passing.ts';
import { MS } from '../os/mount-bits.ts';
import { mountFileSystem } from '../os/mounts.ts';
import { wordsOfFlags } from './mount-flags.ts';
import { FILE_SYSTEM_TYPE } from './mount-table.ts';

/**
 * Longer reads come in two pieces, which two workers answer at the same time. A pipe of 1 MiB, the largest that is had
 * without privilege, holds one of them with its header.
 */
const MAX_READ_BYTES = 512 << 10;
const DEVICE = '/dev/fuse';

export interface MountRequest {
  /** What /proc/mounts shows as the source. */
  readonly source: string;
  readonly mountpoint: string;
  readonly readOnly: boolean;
  readonly allowOther: boolean;
  /** Flags of mount(2), see mount-flags.ts. */
  readonly flags: number;
}

const isRoot = (): boolean => process.getuid?.() === 0;

/**
 * Mounts; the descriptor answers for the mount from then on. Errors: ENOENT without /dev/fuse, EACCES, EPERM, and what
 * fusermount3 says.
 */
export const mountFuse = async (request: MountRequest): Promise<number> =>
  isRoot() ? mountAsRoot(request) : mountAsUser(request);

const mountAsRoot = (request: MountRequest): number => {
  const { source, mountpoint, readOnly, allowOther, flags } = request;
  const fd = openDevice();
  const options = [
    `fd=${fd}`,
    'rootmode=40000',
    `user_id=${process.getuid?.() ?? 0}`,
    `group_id=${process.getgid?.() ?? 0}`,
    'default_permissions',
    `max_read=${MAX_READ_BYTES}`,
    ...(allowOther ? ['allow_other'] : []),
  ];
  try {
    mountFileSystem({
      source,
      mountpoint,
      type: FILE_SYSTEM_TYPE,
      flags: flags | (readOnly ? MS.RDONLY : 0),
      data: options.join(','),
    });
    return fd;
  } catch (error) {
    closeSync(fd);
    throw error;
  }
};

const openDevice = (): number => {
  try {
    return openSync(DEVICE, constants.O_RDWR);
  } catch (error) {
    throw new BlockError({
      ...pick(toBlockError(error, { op: 'mount', path: DEVICE })),
      hint: 'load the kernel module fuse (modprobe fuse)',
    });
  }
};

const pick = ({ kind, errno, message, op, path }: BlockError) => ({
  kind,
  errno,
  message,
  op,
  path,
});

const mountAsUser = async (request: MountRequest): Promise<number> => {
  const { source, mountpoint, readOnly, allowOther, flags } = request;
  const options = [
    `fsname=${source.replaceAll('\\', '\\\\').replaceAll(',', '\\,')}`,
    'subtype=vdiskfs',
    'default_permissions',
    `max_read=${MAX_READ_BYTES}`,
    'nosuid',
    'nodev',
    ...wordsOfFlags(flags),
    readOnly ? 'ro' : 'rw',
    ...(allowOther ? ['allow_other'] : []),
  ];
  const [ours, theirs] = socketPair();
  try {
    const child = spawn('fusermount3', ['-o', options.join(','), '--', mountpoint], {
      stdio: ['ignore', 'ignore', 'pipe', theirs],
      env: { ...process.env, _FUSE_COMMFD: '3' },
    });
    const ended = outcomeOf(child);
    const { code, complaint } = await ended;
    const [fd] = code === 0 ? receiveDescriptors(ours) : [];
    if (fd !== undefined) return fd;
    throw new BlockError({
      kind: 'not-permitted',
      message: complaint === '' ? `fusermount3 ended with ${code}` : complaint,
      op: 'mount',
      path: mountpoint,
    });
  } finally {
    closeSync(ours);
    closeSync(theirs);
  }
};

interface Outcome {
  readonly code: number | null;
  readonly complaint: string;
}

const outcomeOf = (child: ChildProcess): Promise<Outcome> =>
  new Promise((resolve, reject) => {
    let complaint = '';
    child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      complaint += text;
    });
    child.once('error', (error: NodeJS.ErrnoException) => {
      const missing = error.code === 'ENOENT';
      const message = missing ? `${child.spawnfile} is not installed` : error.message;
      const hint = missing ? 'install the package fuse3' : undefined;
      reject(new BlockError({ kind: 'not-found', message, hint, op: 'mount' }));
    });
    child.once('close', (code) => resolve({ code, complaint: lastLine(complaint) }));
  });

// fusermount3 and umount begin with their own name.
const lastLine = (text: string): string =>
  (text.trim().split('\n').at(-1) ?? '').replace(/^(?:fusermount3|umount): /, '');

/** Unmounts; `lazy` detaches at once and lets open files go on. Errors: EBUSY kind busy while something uses it. */
export const unmountFuse = async (
  mountpoint: string,
  options: { readonly lazy: boolean },
): Promise<void> => {
  const { lazy } = options;
  const [program, args] = isRoot()
    ? ['umount', ['-i', ...(lazy ? ['-l'] : []), '--', mountpoint]]
    : ['fusermount3', ['-u', '-q', ...(lazy ? ['-z'] : []), '--', mountpoint]];
  const child = spawn(program, args, {
    stdio: ['ignore', 'ignore', 'pipe'],
    env: { ...process.env, LC_ALL: 'C' },
  });
  const { code, complaint } = await outcomeOf(child);
  if (code === 0) return;
  const busy = /busy/i.test(complaint) || (!isRoot() && complaint === '');
  throw new BlockError({
    kind: busy ? 'busy' : 'io',
    message: complaint === '' ? `${program} ended with ${code}` : complaint,
    op: 'umount',
    path: mountpoint,
  });
};
