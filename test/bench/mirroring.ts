/**
 * Mirrors of a local disk beside QEMU's blockdev-mirror, to a new file.
 *
 * QEMU's export as a file refuses to be writable under a mirror. Its reads come from a read-only one; for the guest's writes it
 * has a writable NBD export at a Unix socket, which fio drives with its NBD engine: no kernel in between, where ours is a
 * file in a mount.
 */
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { loopFileSystem } from '../support/loop-file-system.ts';
import { qemuImg } from '../support/qemu-img.ts';
import {
  JOB_DISK_BYTES,
  LONG_JOB_DISK_BYTES,
  makeJobDisk,
  smallRequests,
  throughFile,
} from './beside-jobs.ts';
import type { Contest } from './contests.ts';
import { GIB, MIB } from './disks.ts';
import { tool } from './programs.ts';
import { type Metrics, SETTLED_MS } from './rounds.ts';
import { completed, type Running, startVdiskfs } from './running.ts';
import { startNbdDaemon, startStorageDaemon } from './storage-daemon.ts';

const JOB_MS = 120_000;
const XFS_BYTES = 8 * GIB;
const READS_SECONDS = 1;
const WRITES_SECONDS = 4;

type Format = 'raw' | 'qcow2';

/** A disk, and a mirror of it that can be started. */
interface Mirroring extends Running {
  /** Resolves when the job runs. */
  readonly begin: () => Promise<void>;
  readonly guest: readonly string[];
}

const ready = async (qmp: Running['qmp']): Promise<void> => {
  await qmp.event('BLOCK_JOB_READY', JOB_MS);
};

const end = async (qmp: Running['qmp']): Promise<void> => {
  await qmp.execute('block-job-cancel', { device: 'mirror' });
  await completed(qmp, JOB_MS).catch(() => undefined);
};

/**
 * A virtual machine's memory that was free for long is not there until it is touched, which adds up to half of a mirror's time. Both
 * sides find some that was in use a moment ago.
 */
const touchMemory = async (path: string, bytes: number): Promise<void> => {
  const mib = String(bytes / MIB);
  await tool('dd', ['if=/dev/zero', `of=${path}`, 'bs=1M', `count=${mib}`, 'status=none']);
  await rm(path);
};

/** Bytes per second until both sides are the same and the target is flushed. */
const mirrored = async ({ begin, qmp }: Mirroring): Promise<Metrics> => {
  await sleep(SETTLED_MS);
  const began = performance.now();
  await begin();
  await ready(qmp);
  const seconds = (performance.now() - began) / 1000;
  await end(qmp);
  return new Map([['bytesPerSecond', JOB_DISK_BYTES / seconds]]);
};

/** Latency of 4k reads at depth 1 by a guest until the job is ready. */
const readsBeside = async (mirroring: Mirroring, scratch: string): Promise<Metrics> => {
  const { begin, guest, qmp } = mirroring;
  await begin();
  const read = await smallRequests(scratch, 'randread', READS_SECONDS, guest);
  const wasReady = qmp.events.some(({ event }) => event === 'BLOCK_JOB_READY');
  await ready(qmp);
  await end(qmp);
  if (wasReady) throw new Error('the job was ready before the guest had ended');
  return new Map([['p99', read.p99Us]]);
};

/** 4k writes at depth 1 by a guest while the job is ready and copies what it writes. */
const writesBeside = async (mirroring: Mirroring, scratch: string): Promise<Metrics> => {
  const { begin, guest, qmp } = mirroring;
  await begin();
  await ready(qmp);
  const written = await smallRequests(scratch, 'randwrite', WRITES_SECONDS, guest);
  await end(qmp);
  return new Map([['iops', written.iops]]);
};

/** `place`: an XFS in a file on the tmpfs, or the tmpfs itself. */
const contest = (
  name: string,
  format: Format,
  measure: (mirroring: Mirroring, scratch: string) => Promise<Metrics>,
  targets: Contest['targets'],
  place: 'tmpfs' | 'xfs' = 'tmpfs',
): Contest => ({
  name,
  targets,
  prepare: async (tmpfs) => {
    const xfs = place === 'xfs' ? await loopFileSystem('xfs', tmpfs, XFS_BYTES) : null;
    const directory = xfs?.directory ?? tmpfs;
    const diskBytes = measure === readsBeside ? LONG_JOB_DISK_BYTES : JOB_DISK_BYTES;
    const image = await makeJobDisk(directory, diskBytes);
    const target = join(directory, `target.${format}`);
    const side = (start: () => Promise<Mirroring>) => async (): Promise<Metrics> => {
      if (place === 'tmpfs' && measure === mirrored) await touchMemory(target, diskBytes);
      await qemuImg(['create', '-q', '-f', format, target, String(diskBytes)]);
      const mirroring = await start();
      try {
        return await measure(mirroring, directory);
      } finally {
        await mirroring.close();
        await rm(target);
      }
    };
    const job = { 'job-id': 'mirror', device: 'top', sync: 'full' };
    const ours = async (): Promise<Mirroring> => {
      const running = await startVdiskfs(directory, image);
      const begin = async (): Promise<void> => {
        const how = { ...job, target, format, mode: 'existing' };
        await running.qmp.execute('drive-mirror', how);
      };
      return { ...running, begin, guest: throughFile(running.path) };
    };
    const theirs = async (): Promise<Mirroring> => {
      const options = {
        scratch: directory,
        blockdevs: [
          `driver=file,node-name=file,filename=${image}`,
          'driver=qcow2,node-name=top,file=file',
          `driver=file,node-name=target-file,filename=${target}`,
          `driver=${format},node-name=target,file=target-file`,
        ],
        top: 'top',
      };
      const isWritten = measure === writesBeside;
      const running = await (isWritten ? startNbdDaemon : startStorageDaemon)(options);
      const begin = async (): Promise<void> => {
        await running.qmp.execute('blockdev-mirror', { ...job, target: 'target' });
      };
      const nbd = ['ioengine=nbd', `uri=${running.path}`];
      return { ...running, begin, guest: isWritten ? nbd : throughFile(running.path) };
    };
    const close = async (): Promise<void> => {
      await rm(image);
      await xfs?.close();
    };
    return { ours: side(ours), theirs: side(theirs), close };
  },
});

export const MIRRORING: readonly Contest[] = [
  contest('mirror of 2 GiB to raw', 'raw', mirrored, [{ metric: 'bytesPerSecond', atLeast: 1.2 }]),
  contest('mirror of 2 GiB to qcow2', 'qcow2', mirrored, [
    { metric: 'bytesPerSecond', atLeast: 1.2 },
  ]),
  // Where blocks can be shared, as they can on Btrfs.
  contest(
    'mirror of 2 GiB on XFS, to raw',
    'raw',
    mirrored,
    [{ metric: 'bytesPerSecond', atLeast: 1.2 }],
    'xfs',
  ),
  contest(
    'mirror of 2 GiB on XFS, to qcow2',
    'qcow2',
    mirrored,
    [{ metric: 'bytesPerSecond', atLeast: 1.2 }],
    'xfs',
  ),
  contest('4k reads at depth 1 during phase 1 of a mirror', 'raw', readsBeside, [
    { metric: 'p99', atMost: 0.6 },
  ]),
  contest('4k writes at depth 1 under a ready mirror (QEMU: NBD export)', 'qcow2', writesBeside, [
    { metric: 'iops', atLeast: 1.5 },
  ]),
];
