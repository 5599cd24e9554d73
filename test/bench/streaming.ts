/** Streams beside QEMU's block-stream, on the same chain of a local base and an empty overlay. */
import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { qemuImg } from '../support/qemu-img.ts';
import { QmpConnection } from '../support/qmp.ts';
import { vdiskfs } from '../support/vdiskfs.ts';
import type { Contest } from './contests.ts';
import { GIB, MIB } from './disks.ts';
import { fio, tool } from './programs.ts';
import type { Metrics } from './rounds.ts';
import { startStorageDaemon } from './storage-daemon.ts';

const BASE_BYTES = 2 * GIB;
const JOB_MS = 120_000;
/** A stream on this machine takes longer. */
const READS_SECONDS = 1;

/** A stream that is about to begin: under vdiskfs, or under QEMU. */
interface Streaming {
  readonly path: string;
  readonly qmp: QmpConnection;
  readonly close: () => Promise<void>;
}

/** Bytes per second until the job has completed. */
const streamed = async ({ qmp }: Streaming): Promise<Metrics> => {
  const began = performance.now();
  await qmp.execute('block-stream', { 'job-id': 'stream', device: 'top' });
  await completed(qmp);
  return new Map([['bytesPerSecond', BASE_BYTES / ((performance.now() - began) / 1000)]]);
};

/** Latency of 4k reads at depth 1 by a guest while the stream runs. */
const readsBeside = async ({ qmp, path }: Streaming, scratch: string): Promise<Metrics> => {
  await qmp.execute('block-stream', { 'job-id': 'stream', device: 'top' });
  const job = [
    ...['[x]', `filename=${path}`, 'rw=randread', 'bs=4k', 'direct=1', `size=${BASE_BYTES}`],
    ...['time_based=1', `runtime=${READS_SECONDS}`, 'norandommap=1', 'randrepeat=0', ''],
  ].join('\n');
  const [result] = (await fio(scratch, job)).values();
  await completed(qmp);
  return new Map([['p99', result?.p99Us ?? Number.NaN]]);
};

const completed = async (qmp: QmpConnection): Promise<void> => {
  const { data } = await qmp.event('BLOCK_JOB_COMPLETED', JOB_MS);
  if (data?.['error'] !== undefined) throw new Error(String(data['error']));
};

const contest = (
  name: string,
  measure: (streaming: Streaming, scratch: string) => Promise<Metrics>,
  targets: Contest['targets'],
): Contest => ({
  name,
  targets,
  prepare: async (directory) => {
    const base = join(directory, 'base.qcow2');
    const random = join(directory, 'base.raw');
    const overlay = join(directory, 'top.qcow2');
    await tool('dd', ['if=/dev/urandom', `of=${random}`, 'bs=1M', `count=${BASE_BYTES / MIB}`]);
    await qemuImg(['convert', '-f', 'raw', '-O', 'qcow2', random, base]);
    await rm(random);
    const side = (start: () => Promise<Streaming>) => async (): Promise<Metrics> => {
      await qemuImg(['create', '-q', '-f', 'qcow2', '-F', 'qcow2', '-b', base, overlay]);
      const streaming = await start();
      try {
        return await measure(streaming, directory);
      } finally {
        await streaming.close();
        await rm(overlay);
      }
    };
    return {
      ours: side(() => startVdiskfs(directory, overlay)),
      theirs: side(() =>
        startStorageDaemon(
          directory,
          [
            `driver=file,node-name=file,filename=${overlay}`,
            `driver=file,node-name=base-file,filename=${base}`,
            'driver=qcow2,node-name=base,file=base-file',
            'driver=qcow2,node-name=top,file=file,backing=base',
          ],
          'top',
        ),
      ),
      close: () => rm(base),
    };
  },
});

const startVdiskfs = async (directory: string, overlay: string): Promise<Streaming> => {
  const mountpoint = join(directory, 'mnt');
  const socket = join(directory, 'vdiskfs.sock');
  await mkdir(mountpoint, { recursive: true });
  const own = ['--socket', socket, '--state-dir', join(directory, 'state')];
  const done = await vdiskfs(['mount', ...own, `top=${overlay}`, mountpoint]);
  if (done.status !== 0) throw new Error(done.stderr);
  const qmp = await QmpConnection.open(socket);
  const close = async (): Promise<void> => {
    qmp.close();
    const ended = await vdiskfs(['umount', mountpoint], { timeoutMs: 60_000 });
    if (ended.status !== 0) throw new Error(ended.stderr);
  };
  return { path: join(mountpoint, 'top.raw'), qmp, close };
};

export const STREAMING: readonly Contest[] = [
  contest('stream of a 2 GiB base', streamed, [{ metric: 'bytesPerSecond', atLeast: 1.5 }]),
  contest('4k reads at depth 1 during a stream', readsBeside, [{ metric: 'p99', atMost: 0.5 }]),
];
