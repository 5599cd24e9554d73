/**
 * A base on a web server that takes 20 ms for each answer, beside QEMU's curl driver: a boot that reads it with copy-on-read, once
 * and again, and a stream of it.
 */
import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { seededRandom } from '../../src/base/random.ts';
import { HttpOrigin } from '../support/http-origin.ts';
import { qemuImg } from '../support/qemu-img.ts';
import type { Contest } from './contests.ts';
import { MIB } from './disks.ts';
import { fio } from './programs.ts';
import type { Metrics } from './rounds.ts';
import { completed, type Running, startVdiskfs } from './running.ts';
import { startStorageDaemon } from './storage-daemon.ts';

const BOOT_BYTES = 128 * MIB;
/** Long enough for a rate: what a job costs at its ends does not count. */
const STREAM_BYTES = 512 * MIB;
const DELAY_MS = 20;
const JOB_MS = 300_000;
const BLOCK_BYTES = 4096;
/** A kernel, an initrd: read from start to end. */
const LARGE_BYTES = [8 * MIB, 16 * MIB];
/** Files, of up to 64 KiB, all over the disk. */
const FILES = 60;
const MAX_FILE_BLOCKS = 16;

const run = (firstBlock: number, blocks: number): readonly number[] =>
  Array.from({ length: blocks }, (_, i) => (firstBlock + i) * BLOCK_BYTES);

/** A boot, in reads of 4 KiB: two large files, then many small ones. */
const bootTrace = (): readonly number[] => {
  const random = seededRandom(7);
  const blocks = BOOT_BYTES / BLOCK_BYTES;
  const large = LARGE_BYTES.map((bytes, i) => run((i + 1) * (blocks / 4), bytes / BLOCK_BYTES));
  const small = Array.from({ length: FILES }, () =>
    run(random.below(blocks - MAX_FILE_BLOCKS), 1 + random.below(MAX_FILE_BLOCKS)),
  );
  return [...large, ...small].flat();
};

/** Seconds that fio takes for the trace: in order, or `depth` reads at once. */
const replay = async (path: string, directory: string, depth: number): Promise<number> => {
  const log = join(directory, 'boot.log');
  const reads = bootTrace().map((at) => `${path} read ${at} ${BLOCK_BYTES}`);
  const head = ['fio version 2 iolog', `${path} add`, `${path} open`];
  await writeFile(log, `${[...head, ...reads, `${path} close`].join('\n')}\n`);
  const engine = depth === 1 ? '' : `ioengine=libaio\niodepth=${depth}\n`;
  const job = `[x]\nread_iolog=${log}\nreplay_no_stall=1\ndirect=1\n${engine}`;
  const [result] = (await fio(directory, job)).values();
  return result?.seconds ?? Number.NaN;
};

interface Remote {
  readonly origin: HttpOrigin;
  readonly directory: string;
  readonly overlay: string;
}

const startQemu = (remote: Remote, copyOnRead: boolean): Promise<Running> =>
  startStorageDaemon({
    scratch: remote.directory,
    blockdevs: [
      `driver=file,node-name=file,filename=${remote.overlay}`,
      `driver=http,node-name=base,read-only=on,url=${remote.origin.url('base.raw')}`,
      'driver=raw,node-name=raw,read-only=on,file=base',
      'driver=qcow2,node-name=top,file=file,backing=raw',
      ...(copyOnRead ? ['driver=copy-on-read,node-name=cor,file=top'] : []),
    ],
    top: copyOnRead ? 'cor' : 'top',
  });

/** The same work on both sides, with a new overlay for each. */
const contest = (
  name: string,
  targets: Contest['targets'],
  how: { readonly copyOnRead: boolean; readonly baseBytes: number },
  measure: (running: Running, remote: Remote) => Promise<Metrics>,
): Contest => ({
  name,
  targets,
  prepare: async (directory) => {
    const random = seededRandom(11);
    const { baseBytes } = how;
    const content = Buffer.alloc(baseBytes);
    for (let at = 0; at < baseBytes; at += 4) content.writeUInt32LE(random.below(2 ** 32), at);
    const origin = new HttpOrigin(content);
    origin.delayMs = DELAY_MS;
    await origin.start();
    const remote: Remote = { origin, directory, overlay: join(directory, 'top.qcow2') };
    const side = (start: () => Promise<Running>) => async (): Promise<Metrics> => {
      const base = ['-F', 'raw', '-b', origin.url('base.raw'), '-u'];
      await qemuImg([
        ...['create', '-q', '-f', 'qcow2', ...base],
        ...[remote.overlay, String(baseBytes)],
      ]);
      const running = await start();
      try {
        return await measure(running, remote);
      } finally {
        await running.close();
        await rm(remote.overlay);
      }
    };
    return {
      ours: side(() =>
        startVdiskfs(directory, remote.overlay, [
          ...['--backing-dir', origin.base],
          ...(how.copyOnRead ? ['--copy-on-read'] : []),
        ]),
      ),
      theirs: side(() => startQemu(remote, how.copyOnRead)),
      close: () => origin.stop(),
    };
  },
});

const boot =
  (depth: number) =>
  async (running: Running, { origin, directory }: Remote) => {
    const first = await replay(running.path, directory, depth);
    // What was read is in the kernel's cache of nobody: the reads are direct.
    origin.asked.length = 0;
    const second = await replay(running.path, directory, depth);
    return new Map([
      ['seconds', first],
      ['seconds of the second pass', second],
      // At least one, so that a ratio of none to none is 1.
      ['requests of the second pass + 1', origin.asked.length + 1],
    ]);
  };

const streamed = async ({ qmp }: Running, { origin }: Remote): Promise<Metrics> => {
  origin.asked.length = 0;
  const began = performance.now();
  await qmp.execute('block-stream', { 'job-id': 'stream', device: 'top' });
  await completed(qmp, JOB_MS);
  const seconds = (performance.now() - began) / 1000;
  return new Map([
    ['bytesPerSecond', STREAM_BYTES / seconds],
    ['requests', origin.asked.length],
  ]);
};

const BOOT = { copyOnRead: true, baseBytes: BOOT_BYTES };
const STREAM = { copyOnRead: false, baseBytes: STREAM_BYTES };

export const REMOTE: readonly Contest[] = [
  contest(
    'a boot over HTTP, 20 ms away, with copy-on-read, depth 1',
    [
      { metric: 'seconds', atMost: 0.8 },
      { metric: 'requests of the second pass + 1', atMost: 1 },
    ],
    BOOT,
    boot(1),
  ),
  contest(
    'a boot over HTTP, 20 ms away, with copy-on-read, depth 8',
    [
      { metric: 'seconds', atMost: 0.6 },
      { metric: 'requests of the second pass + 1', atMost: 1 },
    ],
    BOOT,
    boot(8),
  ),
  contest(
    'stream over HTTP, 20 ms away',
    [
      { metric: 'bytesPerSecond', atLeast: 8 },
      { metric: 'requests', atMost: 0.55 },
    ],
    STREAM,
    streamed,
  ),
];
