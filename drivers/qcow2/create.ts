/**
 * Making qcow2 images (specification: "Header", "Header extensions", "Refcount table", "L1 table").
 *
 * The layout, in clusters: header, refcount table, refcount blocks, L1 table, encryption header, and with preallocated
 * metadata all L2 tables and all data clusters, each kind in one piece. The header is written last, after a flush: a file that a crash
 * left half-made has no magic.
 */
import { viewOf, writeU64BE } from '../../src/base/byte-order.ts';
import { divideUp, isPowerOfTwo } from '../../src/base/range.ts';
import { guestOffset, hostCluster, hostOffsetOfCluster } from '../../src/base/units.ts';
import type {
  CreateOption,
  CreatePlan,
  CreateRequest,
  DataFilePlan,
} from '../../src/block/image-creation.ts';
import type { Node } from '../../src/block/node.ts';
import { COMPRESSION } from './compression.ts';
import { encodeHeader, type Layout, type Run, wrongOption } from './create-header.ts';
import { encryptionOptions, plannedLuks } from './encryption/create-options.ts';
import { makeLuks, newLuksBytes } from './encryption/luks-key.ts';
import { ENTRY_BYTES, EXTENDED_ENTRY_BYTES, MIN_EXTENDED_CLUSTER_BITS } from './layout.ts';
import { ALL_SUBCLUSTERS } from './subclusters.ts';

export const createOptions: readonly CreateOption[] = [
  {
    name: 'cluster_size',
    type: 'size',
    help: 'Cluster size, a power of two from 512 to 2M [64k]',
  },
  {
    name: 'compat',
    type: 'choice',
    choices: ['0.10', '1.1', 'v2', 'v3'],
    help: 'Version of the format [1.1, which is v3]',
  },
  {
    name: 'refcount_bits',
    type: 'number',
    help: 'Width of a refcount, a power of two from 1 to 64 [16]',
  },
  {
    name: 'preallocation',
    type: 'choice',
    choices: ['off', 'metadata', 'falloc', 'full'],
    help: 'Make all tables now, so that writes change none; falloc: take the space of all data too; full: write it [off]',
  },
  {
    name: 'lazy_refcounts',
    type: 'boolean',
    help: 'Let writers postpone refcounts, at the price of a repair after a crash [off]',
  },
  {
    name: 'data_file',
    type: 'string',
    help: "Name of a file for the guest's data, beside the image unless absolute; made, or there and empty",
  },
  {
    name: 'data_file_raw',
    type: 'boolean',
    help: 'The data file is a raw image of its own at any time [off]',
  },
  {
    name: 'extended_l2',
    type: 'boolean',
    help: 'Let clusters have 32 subclusters each, of which each is there, zero or below by itself [off]',
  },
  {
    name: 'compression_type',
    type: 'choice',
    choices: ['zlib', 'zstd'],
    help: 'How compressed clusters are packed [zlib]',
  },
  ...encryptionOptions,
];

const MIN_CLUSTER_BITS = 9;
const MAX_CLUSTER_BITS = 21;
const MAX_L1_BYTES = 32 << 20;
const MAX_REFCOUNT_TABLE_BYTES = 8 << 20;
const COPIED_HIGH = 0x8000_0000;
const WRITE_BYTES = 1 << 20;

/** Refuses (EINVAL) options and sizes that no image can have. */
export const checkCreate = (plan: CreatePlan): void => {
  encodeHeader(layOut(plan), plan.backing, plan.path);
};

/** The file that `data_file` names. */
export const createDataFile = (options: ReadonlyMap<string, string>): DataFilePlan | null => {
  const filename = options.get('data_file');
  return filename === undefined
    ? null
    : { link: { filename, format: 'raw' }, isMade: true, isEmpty: true };
};

/** Writes an empty image. Errors: as `checkCreate`; ENOSPC, EIO. */
export const create = async (request: CreateRequest): Promise<void> => {
  const layout = layOut(request);
  const header = encodeHeader(layout, request.backing, request.path);
  const { file } = request;
  const { clusterBytes, l1, l2, data, refcountTable, refcountBlocks } = layout;
  await file.resize(layout.clusters * clusterBytes);
  await writeEncryption(request, layout);
  const sequence = { stepBytes: clusterBytes, file };
  await writePointers({
    ...sequence,
    at: hostOffsetOfCluster(refcountTable.first, clusterBytes),
    count: refcountBlocks.clusters,
    target: hostOffsetOfCluster(refcountBlocks.first, clusterBytes),
    copied: false,
  });
  await writeRefcounts(file, layout);
  await writePointers({
    ...sequence,
    at: hostOffsetOfCluster(l1.first, clusterBytes),
    count: l2.clusters,
    target: hostOffsetOfCluster(l2.first, clusterBytes),
    copied: true,
  });
  await writePointers({
    ...sequence,
    at: hostOffsetOfCluster(l2.first, clusterBytes),
    count: layout.mappedClusters,
    target: layout.dataFile === null ? hostOffsetOfCluster(data.first, clusterBytes) : 0,
    entryBytes: l2EntryBytes(layout.extendedL2),
    // A raw data file is seen where the tables say that all of it is there.
    subclusters: layout.dataFile?.isRaw === true ? ALL_SUBCLUSTERS : 0,
    copied: true,
  });
  if (request.dataFile !== null) {
    await request.dataFile.resize(request.virtualSizeBytes);
    await takeDataSpace(request.dataFile, 0, layout);
    await request.dataFile.flush();
  } else await takeDataSpace(file, hostOffsetOfCluster(data.first, clusterBytes), layout);
  await file.flush();
  await file.write(guestOffset(0), header);
};

const takeDataSpace = async (file: Node, start: number, l: Layout): Promise<void> => {
  const end = Math.min(file.lengthBytes, start + l.mappedClusters * l.clusterBytes);
  if (l.preallocation === 'falloc' && end > start)
    await file.allocate(guestOffset(start), end - start);
  if (l.preallocation !== 'full') return;
  const zeroes = new Uint8Array(WRITE_BYTES);
  for (let at = start; at < end; at += WRITE_BYTES) {
    await file.write(guestOffset(at), zeroes.subarray(0, Math.min(WRITE_BYTES, end - at)));
  }
};

const l2EntryBytes = (extended: boolean): number => (extended ? EXTENDED_ENTRY_BYTES : ENTRY_BYTES);

const writeEncryption = async (request: CreateRequest, layout: Layout): Promise<void> => {
  const luks = plannedLuks(request);
  if (luks === null || layout.encryption === null) return;
  const { secret, path, file } = request;
  if (secret === null) throw wrongOption(path, 'encrypt.key-secret', 'there is no such secret');
  const bytes = await makeLuks(luks, secret);
  await file.write(
    guestOffset(hostOffsetOfCluster(layout.encryption.run.first, layout.clusterBytes)),
    bytes,
  );
};

const layOut = (plan: CreatePlan): Layout => {
  const { options, path } = plan;
  const clusterBytes = Number(options.get('cluster_size') ?? 65536);
  const clusterBits = Math.log2(clusterBytes);
  if (
    !isPowerOfTwo(clusterBytes) ||
    clusterBits < MIN_CLUSTER_BITS ||
    clusterBits > MAX_CLUSTER_BITS
  ) {
    throw wrongOption(path, 'cluster_size', `${clusterBytes} is no power of two from 512 to 2M`);
  }
  const compat = options.get('compat') ?? '1.1';
  const version = compat === '0.10' || compat === 'v2' ? 2 : 3;
  const refcountBits = Number(options.get('refcount_bits') ?? 16);
  if (!isPowerOfTwo(refcountBits) || refcountBits > 64) {
    throw wrongOption(path, 'refcount_bits', `${refcountBits} is no power of two from 1 to 64`);
  }
  if (version === 2 && refcountBits !== 16) {
    throw wrongOption(path, 'refcount_bits', `${refcountBits} needs compat 1.1: version 2 has 16`);
  }
  const lazyRefcounts = options.get('lazy_refcounts') === 'on';
  if (version === 2 && lazyRefcounts)
    throw wrongOption(path, 'lazy_refcounts', 'it needs compat 1.1');
  const compressionType = COMPRESSION[options.get('compression_type') === 'zstd' ? 'zstd' : 'zlib'];
  if (version === 2 && compressionType !== COMPRESSION.zlib)
    throw wrongOption(path, 'compression_type', 'zstd needs compat 1.1');
  const dataFile = dataFileOf(plan, version);
  // A raw data file is what the guest sees, so the tables map all of it.
  const preallocation = (options.get('preallocation') ?? 'off') as Layout['preallocation'];
  const preallocate = preallocation !== 'off' || dataFile?.isRaw === true;
  const extendedL2 = isExtended(plan, version, clusterBits);
  if (preallocate && plan.backing !== null && !extendedL2) {
    // Every cluster would be allocated, and the backing image never seen.
    const message = 'it cannot be used with a backing image, unless extended_l2 is on';
    throw wrongOption(path, 'preallocation', message);
  }
  const { virtualSizeBytes } = plan;
  const features = { lazyRefcounts, compressionType, dataFile, extendedL2, preallocation };
  const shape = { clusterBits, clusterBytes, version, refcountBits, ...features } as const;
  const isDataOutside = dataFile !== null;
  const room = { clusterBytes, refcountBits, preallocate, isDataOutside, extendedL2 };
  return { ...shape, ...layOutClusters(plan, room), virtualSizeBytes };
};

const isExtended = ({ options, path }: CreatePlan, version: 2 | 3, clusterBits: number) => {
  if (options.get('extended_l2') !== 'on') return false;
  if (version === 2) throw wrongOption(path, 'extended_l2', 'it needs compat 1.1');
  if (clusterBits < MIN_EXTENDED_CLUSTER_BITS)
    throw wrongOption(path, 'extended_l2', 'it needs clusters of 16 KiB at least');
  return true;
};

const dataFileOf = ({ options, path, backing }: CreatePlan, version: 2 | 3) => {
  const name = options.get('data_file');
  const isRaw = options.get('data_file_raw') === 'on';
  if (name === undefined) {
    if (isRaw) throw wrongOption(path, 'data_file_raw', 'it needs a data_file');
    return null;
  }
  if (name === '') throw wrongOption(path, 'data_file', 'its name is empty');
  if (version === 2) throw wrongOption(path, 'data_file', 'it needs compat 1.1');
  if (isRaw && backing !== null)
    throw wrongOption(path, 'data_file_raw', 'it cannot be used with a backing image');
  return { name, isRaw };
};

interface ClusterRoom {
  readonly clusterBytes: number;
  readonly refcountBits: number;
  readonly preallocate: boolean;
  /** Guest clusters take no room here. */
  readonly isDataOutside: boolean;
  readonly extendedL2: boolean;
}

const layOutClusters = (plan: CreatePlan, room: ClusterRoom) => {
  const { clusterBytes, refcountBits, preallocate, isDataOutside } = room;
  const guestClusters = divideUp(plan.virtualSizeBytes, clusterBytes);
  const l2Entries = clusterBytes / l2EntryBytes(room.extendedL2);
  const l1Entries = divideUp(guestClusters, l2Entries);
  if (l1Entries * 8 > MAX_L1_BYTES) {
    const largest = (MAX_L1_BYTES / 8) * l2Entries * clusterBytes;
    throw wrongOption(
      plan.path,
      'size',
      `${plan.virtualSizeBytes} bytes are more than the ${largest} that clusters of ${clusterBytes} bytes can map`,
    );
  }
  const l1Clusters = divideUp(l1Entries * 8, clusterBytes);
  const luks = plannedLuks(plan);
  const encryptionBytes = luks === null ? 0 : newLuksBytes(luks.cipher);
  const encryptionClusters = divideUp(encryptionBytes, clusterBytes);
  const l2Clusters = preallocate ? l1Entries : 0;
  const mappedClusters = preallocate ? guestClusters : 0;
  const dataClusters = isDataOutside ? 0 : mappedClusters;
  const others = 1 + l1Clusters + encryptionClusters + l2Clusters + dataClusters;
  const perBlock = (clusterBytes * 8) / refcountBits;
  // Refcounts count themselves: grow until they cover what they add. Each round adds less than the one before.
  let blocks = 1;
  let tables = 1;
  for (;;) {
    const neededBlocks = divideUp(others + blocks + tables, perBlock);
    const neededTables = divideUp(Math.max(neededBlocks, blocks) * 8, clusterBytes);
    if (neededBlocks <= blocks && neededTables <= tables) break;
    blocks = Math.max(blocks, neededBlocks);
    tables = Math.max(tables, neededTables);
  }
  if (tables * clusterBytes > MAX_REFCOUNT_TABLE_BYTES) {
    throw wrongOption(
      plan.path,
      'size',
      `${plan.virtualSizeBytes} preallocated bytes need a refcount table of more than 8 MiB`,
    );
  }
  const refcountTable = { first: hostCluster(1), clusters: tables };
  const refcountBlocks = after(refcountTable, blocks);
  const l1 = after(refcountBlocks, l1Clusters);
  const run = after(l1, encryptionClusters);
  const l2 = after(run, l2Clusters);
  const data = after(l2, dataClusters);
  const clusters = data.first + data.clusters;
  const encryption = luks === null ? null : { run, lengthBytes: encryptionBytes };
  const tableRuns = { refcountTable, refcountBlocks, l1, encryption, l2 };
  return { l1Entries, ...tableRuns, data, clusters, mappedClusters };
};

const after = (run: Run, clusters: number): Run => ({
  first: hostCluster(run.first + run.clusters),
  clusters,
});

interface PointerRun {
  readonly file: Node;
  /** Host offset of the first entry, bytes. */
  readonly at: number;
  readonly count: number;
  /** What the first entry points to; each next one `stepBytes` further. */
  readonly target: number;
  readonly stepBytes: number;
  /** Of an entry: 16 with a bitmap. */
  readonly entryBytes?: number;
  /** Of each bitmap: the subclusters that are allocated. */
  readonly subclusters?: number;
  readonly copied: boolean;
}

const writePointers = async (run: PointerRun): Promise<void> => {
  const { entryBytes = ENTRY_BYTES, subclusters = 0 } = run;
  const perWrite = WRITE_BYTES / entryBytes;
  for (let done = 0; done < run.count; done += perWrite) {
    const entries = Math.min(perWrite, run.count - done);
    const bytes = new Uint8Array(entries * entryBytes);
    const view = viewOf(bytes);
    for (let i = 0; i < entries; i++) {
      const at = i * entryBytes;
      writeU64BE(view, at, run.target + (done + i) * run.stepBytes);
      if (run.copied) view.setUint32(at, view.getUint32(at) + COPIED_HIGH);
      if (entryBytes > ENTRY_BYTES) view.setUint32(at + 12, subclusters);
    }
    await run.file.write(guestOffset(run.at + done * entryBytes), bytes);
  }
};

/** Refcount 1 for every cluster in use. */
const writeRefcounts = async (file: Node, l: Layout): Promise<void> => {
  const at = hostOffsetOfCluster(l.refcountBlocks.first, l.clusterBytes);
  const perWrite = (WRITE_BYTES * 8) / l.refcountBits;
  for (let done = 0; done < l.clusters; done += perWrite) {
    const count = Math.min(perWrite, l.clusters - done);
    const bytes = ones(count, l.refcountBits);
    await file.write(guestOffset(at + (done * l.refcountBits) / 8), bytes);
  }
};

/** `count` refcounts of 1: big-endian from 16 bits on, from the low end of a byte below 8. */
const ones = (count: number, bits: number): Uint8Array => {
  const bytes = new Uint8Array(divideUp(count * bits, 8));
  if (bits >= 8) {
    const step = bits / 8;
    for (let at = step - 1; at < bytes.length; at += step) bytes[at] = 1;
    return bytes;
  }
  const perByte = 8 / bits;
  for (let i = 0; i < count; i++) {
    const at = Math.floor(i / perByte);
    bytes[at] = (bytes[at] ?? 0) | (1 << ((i % perByte) * bits));
  }
  return bytes;
};
