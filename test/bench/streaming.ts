/** Streams beside QEMU's block-stream, on the same chain of a local base and an empty overlay. */
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { qemuImg } from '../support/qemu-img.ts';
import {
  JOB_DISK_BYTES,
  LONG_JOB_DISK_BYTES,
  makeJobDisk,
  smallRequests,
  throughFile,
} from './beside-jobs.ts';
import type { Contest } from './contests.ts';
import type { Metrics } from './rounds.ts';
import { completed, type Running, startVdiskfs } from './running.ts';
import { startStorageDaemon } from './storage-daemon.ts';

const JOB_MS = 120_000;
const READS_SECONDS = 1;

/** Bytes per second until the job has completed. */
const streamed = async ({ qmp }: Running): Promise<Metrics> => {
  const began = performance.now();
  await qmp.execute('block-stream', { 'job-id': 'stream', device: 'top' });
  await completed(qmp, JOB_MS);
  return new Map([['bytesPerSecond', JOB_DISK_BYTES / ((performance.now() - began) / 1000)]]);
};

/** Latency of 4k reads at depth 1 by a guest while the stream runs. */
const readsBeside = async ({ qmp, path }: Running, scratch: string): Promise<Metrics> => {
  await qmp.execute('block-stream', { 'job-id': 'stream', device: 'top' });
  const read = await smallRequests(scratch, 'randread', READS_SECONDS, throughFile(path));
  const wasOver = qmp.events.some(({ event }) => event === 'BLOCK_JOB_COMPLETED');
  await completed(qmp, JOB_MS);
  if (wasOver) throw new Error('the stream had ended before the guest did');
  return new Map([['p99', read.p99Us]]);
};

const contest = (
  name: string,
  diskBytes: number,
  measure: (running: Running, scratch: string) => Promise<Metrics>,
  targets: Contest['targets'],
): Contest => ({
  name,
  targets,
  prepare: async (directory) => {
    const base = await makeJobDisk(directory, diskBytes);
    const overlay = join(directory, 'top.qcow2');
    const side = (start: () => Promise<Running>) => async (): Promise<Metrics> => {
      await qemuImg(['create', '-q', '-f', 'qcow2', '-F', 'qcow2', '-b', base, overlay]);
      const running = await start();
      try {
        return await measure(running, directory);
      } finally {
        await running.close();
        await rm(overlay);
      }
    };
    return {
      ours: side(() => startVdiskfs(directory, overlay)),
      theirs: side(() =>
        startStorageDaemon({
          scratch: directory,
          blockdevs: [
            `driver=file,node-name=file,filename=${overlay}`,
            `driver=file,node-name=base-file,filename=${base}`,
            'driver=qcow2,node-name=base,file=base-file',
            'driver=qcow2,node-name=top,file=file,backing=base',
          ],
          top: 'top',
        }),
      ),
      close: () => rm(base),
    };
  },
});

export const STREAMING: readonly Contest[] = [
  contest('stream of a 2 GiB base', JOB_DISK_BYTES, streamed, [
    { metric: 'bytesPerSecond', atLeast: 1.5 },
  ]),
  contest('4k reads at depth 1 during a stream', LONG_JOB_DISK_BYTES, readsBeside, [
    { metric: 'p99', atMost: 0.5 },
  ]),
];
