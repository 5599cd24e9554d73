/**
 * A matrix of images as qemu-img makes them: versions, cluster sizes, refcount widths, chains, compressed, zero and
 * preallocated clusters, snapshots. Small, so that a whole matrix takes seconds.
 */
import { join } from 'node:path';
import { qemuImg, qemuIo } from './qemu-img.ts';

export interface ImageRecipe {
  /** What is special about it; also the stem of its file name. */
  readonly name: string;
  /** Makes it (and what is below it) in a directory; its path. */
  make(directory: string): Promise<string>;
}

interface Simple {
  readonly options: string;
  readonly size: string;
  /** Commands of qemu-io. */
  readonly io: readonly string[];
  /** Snapshots taken after the I/O, and I/O after each. */
  readonly snapshots?: readonly (readonly [name: string, io: readonly string[]])[];
}

const simple = (name: string, recipe: Simple): ImageRecipe => ({
  name,
  make: async (directory) => {
    const path = join(directory, `${name}.qcow2`);
    await qemuImg(['create', '-q', '-f', 'qcow2', '-o', recipe.options, path, recipe.size]);
    if (recipe.io.length > 0) await qemuIo(path, recipe.io);
    for (const [snapshot, io] of recipe.snapshots ?? []) {
      await qemuImg(['snapshot', '-c', snapshot, path]);
      await qemuIo(path, io);
    }
    return path;
  },
});

/** Some of everything, at any cluster size. */
const MIXED = [
  'write -P 0x11 0 4k',
  'write -P 0x22 70000 100000',
  'write -P 0x33 1M 300k',
  'write -z 400k 200k',
  'write -z -u 1200k 64k',
  'discard 64k 64k',
  'write -P 0x44 2000000 1000',
];

const CLUSTER_BYTES = [512, 4096, 65536, 2097152];
const REFCOUNT_BITS = [1, 2, 4, 8, 32, 64];

const version3 = CLUSTER_BYTES.map((bytes) =>
  simple(`v3-cluster-${bytes}`, { options: `cluster_size=${bytes}`, size: '3M', io: MIXED }),
);

const version2 = [512, 65536].map((bytes) =>
  simple(`v2-cluster-${bytes}`, {
    options: `compat=0.10,cluster_size=${bytes}`,
    size: '3M',
    io: MIXED,
  }),
);

const refcounts = REFCOUNT_BITS.map((bits) =>
  simple(`refcount-${bits}`, { options: `refcount_bits=${bits}`, size: '3M', io: MIXED }),
);

const special: readonly ImageRecipe[] = [
  simple('empty', { options: 'lazy_refcounts=on', size: '10G', io: [] }),
  simple('nothing', { options: 'cluster_size=64k', size: '0', io: [] }),
  simple('unaligned-length', {
    options: 'cluster_size=64k',
    size: '1000k',
    io: ['write -P 9 960k 40k'],
  }),
  simple('preallocated', {
    options: 'preallocation=metadata',
    size: '3M',
    io: ['write -P 5 100k 50k', 'write -z 1M 128k'],
  }),
  simple('compressed', {
    options: 'cluster_size=64k',
    size: '3M',
    io: ['write -c -P 7 0 64k', 'write -c -P 8 128k 64k', 'write -P 9 1M 64k'],
  }),
  simple('compressed-zstd', {
    options: 'compression_type=zstd',
    size: '3M',
    io: ['write -c -P 7 0 64k', 'write -c -P 8 128k 64k', 'write -P 9 1M 64k'],
  }),
  simple('zero-allocated', {
    options: 'cluster_size=64k',
    size: '3M',
    io: ['write -P 1 0 512k', 'write -z 64k 128k', 'write -z 320k 64k'],
  }),
  simple('subclusters', {
    options: 'extended_l2=on,cluster_size=64k',
    size: '3M',
    io: [...MIXED, 'write -P 7 2500k 2k', 'write -z 2504k 6k', 'write -c -P 8 2752k 64k'],
    snapshots: [['first', ['write -P 9 0 3k', 'write -z 1030k 10k']]],
  }),
  simple('subclusters-16k', {
    options: 'extended_l2=on,cluster_size=16k',
    size: '3M',
    io: [...MIXED, 'write -P 7 2500k 512', 'write -z 2501k 1k', 'discard 1M 20k'],
  }),
  simple('subclusters-preallocated', {
    options: 'extended_l2=on,preallocation=metadata',
    size: '3M',
    io: ['write -P 5 100k 50k', 'write -z 1M 10k'],
  }),
  simple('snapshots', {
    options: 'cluster_size=64k',
    size: '3M',
    io: MIXED,
    snapshots: [
      ['first', ['write -P 0x55 0 100k']],
      ['second one', ['write -P 0x66 1M 64k']],
    ],
  }),
];

/** base (raw, shorter) <- middle (version 2) <- top (longer). */
const chain: ImageRecipe = {
  name: 'chain',
  make: async (directory) => {
    const base = join(directory, 'chain-base.img');
    const middle = join(directory, 'chain-middle.qcow2');
    const top = join(directory, 'chain-top.qcow2');
    const overlay = (below: string, format: string, rest: readonly string[]) =>
      qemuImg(['create', '-q', '-f', 'qcow2', '-b', below, '-F', format, ...rest]);
    await qemuImg(['create', '-q', '-f', 'raw', base, '1536k']);
    await qemuIo(base, ['write -P 1 0 300k', 'write -P 2 1M 64k'], ['-f', 'raw']);
    await overlay('chain-base.img', 'raw', ['-o', 'compat=0.10', middle, '2M']);
    await qemuIo(middle, ['write -P 3 128k 64k', 'write -P 4 1800k 64k']);
    await overlay('chain-middle.qcow2', 'qcow2', ['-o', 'cluster_size=4k', top, '3M']);
    await qemuIo(top, ['write -P 5 64k 4k', 'write -z 160k 8k', 'write -P 6 2500k 10k']);
    return top;
  },
};

/** A cluster in two places: parts of it in the overlay, as data or zeros, the rest below. */
const subclusterChain: ImageRecipe = {
  name: 'subcluster-chain',
  make: async (directory) => {
    const base = join(directory, 'subcluster-base.qcow2');
    const top = join(directory, 'subcluster-top.qcow2');
    await qemuImg(['create', '-q', '-f', 'qcow2', '-o', 'extended_l2=on', base, '2500k']);
    await qemuIo(base, ['write -P 1 0 1M', 'write -P 2 1026k 4k', 'write -z 100k 4k']);
    const below = ['-b', 'subcluster-base.qcow2', '-F', 'qcow2'];
    const options = 'extended_l2=on,cluster_size=128k';
    await qemuImg(['create', '-q', '-f', 'qcow2', ...below, '-o', options, top, '3M']);
    const writes = ['write -P 3 64k 4k', 'write -P 4 200k 70k', 'write -P 5 2498k 8k'];
    await qemuIo(top, [...writes, 'write -z 80k 8k', 'write -z 512k 256k']);
    return top;
  },
};

/** Every recipe. Names are unique. */
export const IMAGE_MATRIX: readonly ImageRecipe[] = [
  ...version3,
  ...version2,
  ...refcounts,
  ...special,
  chain,
  subclusterChain,
];
