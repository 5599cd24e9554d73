/** What is measured: the rows of the benchmark, with the ratio to QEMU's export that each has to reach. */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import {
  DISK_BYTES,
  type DiskKind,
  dropHostCache,
  GIB,
  MIB,
  PART_ALLOCATED_BYTES,
} from './disks.ts';
import { dd, fio } from './programs.ts';
import type { Metrics } from './rounds.ts';

export interface Target {
  readonly metric: string;
  /** The ratio has to be at least this, or at most, or is only reported. */
  readonly atLeast?: number;
  readonly atMost?: number;
}

export interface Row {
  readonly name: string;
  readonly disk: DiskKind;
  /** tmpfs: what a disk's writeback would drown. */
  readonly place: 'disk' | 'tmpfs';
  /** A new image for each measurement, else one for each server. */
  readonly fresh: boolean;
  /** What ours is divided by. */
  readonly against: 'qemu' | 'plain file' | 'our own view';
  /** The other side's disk, where it is another one. */
  readonly otherDisk?: DiskKind;
  readonly targets: readonly Target[];
  readonly l2CacheBytes?: number;
  readonly passthrough?: boolean;
  readonly measure: (path: string, scratch: string) => Promise<Metrics>;
  /** How the other side is measured, where that differs. */
  readonly measureOther?: Row['measure'];
}

const SECONDS = 3;

/** A fio section over the whole disk for some seconds. */
const timed = (lines: readonly string[]): string =>
  [
    ...['[x]', 'direct=1', `size=${DISK_BYTES}`, 'time_based=1', `runtime=${SECONDS}`],
    ...['ramp_time=1', 'group_reporting=1', 'norandommap=1', 'randrepeat=0', ...lines, ''],
  ].join('\n');

/** From the host's page cache, as a view's reads come: past it a plain file is read from the disk. */
const cached = (job: string): string => job.replace('direct=1', 'direct=0');

const fioMetric =
  (metric: 'iops' | 'bytesPerSecond', job: string) =>
  async (path: string, scratch: string): Promise<Metrics> => {
    const results = await fio(scratch, `[global]\nfilename=${path}\n${job}`);
    const [first] = results.values();
    if (first === undefined) throw new Error('fio reported no job');
    return new Map([[metric, first[metric]]]);
  };

const SEQUENTIAL_READ = fioMetric('bytesPerSecond', timed(['rw=read', 'bs=1m']));
const RANDOM_READ = timed(['rw=randread', 'bs=4k']);
const EIGHT = 'numjobs=8\n';
const DEPTH_32 = 'ioengine=libaio\niodepth=32\n';
const RANDOM_READ_1 = fioMetric('iops', RANDOM_READ);
const RANDOM_READ_8 = fioMetric('iops', RANDOM_READ + EIGHT);
const RANDOM_READ_DEPTH_32 = fioMetric('iops', RANDOM_READ + DEPTH_32);
const RANDOM_WRITE = timed(['rw=randwrite', 'bs=4k']);

const CLUSTER_BYTES = 65_536;

/** One write of 4 KiB into each cluster of the disk, in an order that is the same for both servers. */
const allocatingWrites =
  (engine: string) =>
  async (path: string, scratch: string): Promise<Metrics> => {
    const clusters = Array.from({ length: DISK_BYTES / CLUSTER_BYTES }, (_, i) => i);
    let seed = 12_345;
    for (let i = clusters.length - 1; i > 0; i--) {
      seed = (seed * 1_103_515_245 + 12_345) % 2 ** 31;
      const j = seed % (i + 1);
      const other = clusters[j] ?? 0;
      clusters[j] = clusters[i] ?? 0;
      clusters[i] = other;
    }
    const log = join(scratch, 'writes.log');
    const writes = clusters.map((c) => `${path} write ${c * CLUSTER_BYTES + (c % 16) * 4096} 4096`);
    const lines = ['fio version 2 iolog', `${path} add`, `${path} open`, ...writes];
    await writeFile(log, `${[...lines, `${path} close`].join('\n')}\n`);
    const job = `[x]\nread_iolog=${log}\nreplay_no_stall=1\ndirect=1\n${engine}`;
    const [result] = (await fio(scratch, job)).values();
    return new Map([['iops', result?.iops ?? Number.NaN]]);
  };

const readsBesideWriter = async (path: string, scratch: string): Promise<Metrics> => {
  const job = [
    ...['[global]', `filename=${path}`, 'direct=1', 'bs=4k', 'time_based=1', 'runtime=5'],
    ...['norandommap=1', 'randrepeat=0'],
    ...['[reader]', 'rw=randread', `size=${PART_ALLOCATED_BYTES}`],
    ...['[writer]', 'rw=randwrite', `offset=${GIB}`, `size=${24 * GIB}`, ''],
  ].join('\n');
  const results = await fio(scratch, job);
  const reader = results.get('reader');
  return new Map([
    ['p99', reader?.p99Us ?? Number.NaN],
    ['p99.9', reader?.p999Us ?? Number.NaN],
    ['writer iops', results.get('writer')?.iops ?? Number.NaN],
  ]);
};

const bufferedReads = async (path: string): Promise<Metrics> => {
  const args = [`if=${path}`, 'of=/dev/null', 'bs=1M'];
  const first = await dd(args);
  return new Map([
    ['first read', first],
    ['second read', await dd(args)],
  ]);
};

const bufferedWrites = async (path: string): Promise<Metrics> => {
  const count = (256 * MIB) / 4096;
  const rate = await dd([
    ...['if=/dev/zero', `of=${path}`, 'bs=4k', `count=${count}`, 'conv=notrunc,fsync'],
  ]);
  return new Map([['one fsync', rate]]);
};

const syncedWrites = fioMetric(
  'iops',
  `[x]\nrw=write\nbs=4k\nsize=${DISK_BYTES}\nfsync=1\ntime_based=1\nruntime=${SECONDS}\n`,
);

const coldReads = async (path: string, scratch: string): Promise<Metrics> => {
  await dropHostCache();
  const job = RANDOM_READ.replace('ramp_time=1', 'ramp_time=0');
  return fioMetric('iops', job + EIGHT)(path, scratch);
};

const allocatingSequential = async (path: string): Promise<Metrics> => {
  const rate = await dd([
    ...['if=/dev/zero', `of=${path}`, 'bs=1M', `count=${DISK_BYTES / MIB}`],
    ...['oflag=direct', 'conv=notrunc,fsync'],
  ]);
  return new Map([['bytesPerSecond', rate]]);
};

const onTebibyte = (lines: readonly string[]) =>
  fioMetric('iops', timed(['rw=randread', 'bs=4k', `size=${2 ** 40}`, ...lines]));

const DEFAULTS = { disk: 'full', place: 'disk', fresh: false, against: 'qemu' } as const;

const row = (
  name: string,
  measure: Row['measure'],
  targets: readonly Target[],
  rest: Partial<Row> = {},
): Row => ({ ...DEFAULTS, name, measure, targets, ...rest });

const iops = (atLeast: number): Target[] => [{ metric: 'iops', atLeast }];
const bandwidth = (atLeast: number): Target[] => [{ metric: 'bytesPerSecond', atLeast }];
const OVERLAY = { disk: 'overlay' } as const;
const ALLOCATING = { disk: 'fresh', place: 'tmpfs', fresh: true } as const;
const OVER_BACKING = { disk: 'overlay', place: 'tmpfs', fresh: true } as const;
const SMALL_CACHE = { disk: 'tebibyte', l2CacheBytes: MIB } as const;
const ADD_COW_BESIDE_RAW = {
  disk: 'add-cow-full',
  otherDisk: 'full-raw',
  against: 'our own view',
} as const;
const ADD_COW_BESIDE_QCOW2 = { ...ADD_COW_BESIDE_RAW, otherDisk: 'full' } as const;
const ADD_COW_OVERLAY = {
  disk: 'add-cow-overlay',
  otherDisk: 'overlay',
  against: 'our own view',
} as const;
const PLAIN = { disk: 'full-raw', against: 'plain file' } as const;
const PASSTHROUGH = { disk: 'full-raw', passthrough: true, against: 'plain file' } as const;

export const ROWS: readonly Row[] = [
  row('sequential read 1M', SEQUENTIAL_READ, bandwidth(3)),
  row('random read 4k, depth 1', RANDOM_READ_1, iops(2.2)),
  row('random read 4k, 8 jobs', RANDOM_READ_8, iops(2.2)),
  row('random read 4k, libaio depth 32', RANDOM_READ_DEPTH_32, iops(2.5)),
  row('backing image: random read 4k, depth 1', RANDOM_READ_1, iops(2), OVERLAY),
  row('backing image: random read 4k, 8 jobs', RANDOM_READ_8, iops(2), OVERLAY),
  row('backing image: random read 4k, libaio depth 32', RANDOM_READ_DEPTH_32, iops(1.9), OVERLAY),
  row('backing image: sequential read 1M', SEQUENTIAL_READ, bandwidth(3), OVERLAY),
  row('in-place random write 4k, depth 1', fioMetric('iops', RANDOM_WRITE), iops(2)),
  row('in-place random write 4k, 8 jobs', fioMetric('iops', RANDOM_WRITE + EIGHT), iops(5)),
  row(
    'in-place sequential write 1M',
    fioMetric('bytesPerSecond', timed(['rw=write', 'bs=1m'])),
    bandwidth(1.2),
  ),
  row(
    'mixed 70/30 random 4k, 4 jobs',
    fioMetric('iops', timed(['rw=randrw', 'rwmixread=70', 'bs=4k', 'numjobs=4'])),
    iops(3),
  ),
  row('allocating sequential write 1M, then fsync', allocatingSequential, bandwidth(1), ALLOCATING),
  row('allocating random write 4k, fresh image', allocatingWrites(''), iops(1.5), ALLOCATING),
  row('allocating random write 4k, over backing', allocatingWrites(''), iops(1.5), OVER_BACKING),
  row(
    'allocating random write 4k, over backing, libaio depth 32',
    allocatingWrites(DEPTH_32),
    iops(1.2),
    OVER_BACKING,
  ),
  row('buffered dd bs=1M', bufferedReads, [
    { metric: 'first read', atLeast: 3 },
    { metric: 'second read', atLeast: 12 },
  ]),
  row('buffered 4k writes, then one fsync', bufferedWrites, [{ metric: 'one fsync', atLeast: 5 }]),
  row('buffered 4k writes, an fsync after each', syncedWrites, iops(1)),
  row('cold random read 4k, 8 jobs', coldReads, iops(1)),
  row(
    '4k reads at depth 1 beside an allocating writer',
    readsBesideWriter,
    [
      { metric: 'p99', atMost: 0.5 },
      { metric: 'p99.9', atMost: 0.7 },
      { metric: 'writer iops', atLeast: 1 },
    ],
    { disk: 'part', place: 'tmpfs', fresh: true },
  ),
  row('1 TiB image, 1 MiB of cache: random read 4k, depth 1', onTebibyte([]), iops(1), SMALL_CACHE),
  row(
    '1 TiB image, 1 MiB of cache: random read 4k, 8 jobs',
    onTebibyte(['numjobs=8']),
    iops(2),
    SMALL_CACHE,
  ),
  row('--passthrough: sequential read 1M', SEQUENTIAL_READ, bandwidth(0.9), PASSTHROUGH),
  row('--passthrough: random read 4k, depth 1', RANDOM_READ_1, iops(0.9), PASSTHROUGH),
  row(
    '--passthrough: random write 4k, depth 1',
    fioMetric('iops', RANDOM_WRITE),
    iops(0.9),
    PASSTHROUGH,
  ),
  row('add-cow, complete: random read 4k, depth 1', RANDOM_READ_1, iops(0.9), ADD_COW_BESIDE_RAW),
  row('add-cow, complete: sequential read 1M', SEQUENTIAL_READ, bandwidth(0.9), ADD_COW_BESIDE_RAW),
  row(
    'add-cow, in-place random write 4k, depth 1, beside qcow2',
    fioMetric('iops', RANDOM_WRITE),
    [{ metric: 'iops' }],
    ADD_COW_BESIDE_QCOW2,
  ),
  row(
    'add-cow, backing image: random read 4k, depth 1, beside qcow2',
    RANDOM_READ_1,
    [{ metric: 'iops' }],
    ADD_COW_OVERLAY,
  ),
  row(
    'add-cow, allocating random write 4k, over backing, beside qcow2',
    allocatingWrites(''),
    [{ metric: 'iops' }],
    { ...ADD_COW_OVERLAY, place: 'tmpfs', fresh: true },
  ),
  row('allocating random write 4k on a real disk', allocatingWrites(''), [{ metric: 'iops' }], {
    ...ALLOCATING,
    place: 'disk',
  }),
  row(
    'plain file as the limit: sequential read 1M',
    SEQUENTIAL_READ,
    [{ metric: 'bytesPerSecond' }],
    { ...PLAIN, measureOther: fioMetric('bytesPerSecond', cached(timed(['rw=read', 'bs=1m']))) },
  ),
  row('plain file as the limit: random read 4k, depth 1', RANDOM_READ_1, [{ metric: 'iops' }], {
    ...PLAIN,
    measureOther: fioMetric('iops', cached(RANDOM_READ)),
  }),
  row(
    'plain file as the limit: buffered dd bs=1M',
    bufferedReads,
    [{ metric: 'first read' }, { metric: 'second read' }],
    PLAIN,
  ),
];
