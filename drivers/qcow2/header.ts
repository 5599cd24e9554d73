/**
 * The header of a qcow2 image and its extensions (specification: "Header", "Header extensions"): read, and checked field
 * by field before anything is allocated by it.
 */
import { BlockError, invalidImage } from '../../src/base/block-error.ts';
import { readU64BE, viewOf } from '../../src/base/byte-order.ts';
import { divideUp, isAligned } from '../../src/base/range.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { BackingLink } from '../../src/block/image-description.ts';
import type { Node } from '../../src/block/node.ts';
import type { CheckShape } from './check-state.ts';
import { COMPRESSION } from './compression.ts';
import { hex } from './entry.ts';
import {
  backingFormatOf,
  type Extension,
  extensionsAreIn,
  featureName,
  readExtensions,
} from './header-extensions.ts';
import {
  AUTOCLEAR,
  ENTRY_BYTES,
  EXTENDED_ENTRY_BYTES,
  HEADER,
  HEADER_V2_BYTES,
  HEADER_V3_BYTES,
  INCOMPATIBLE,
  MAGIC,
  MAX_BACKING_NAME_BYTES,
  MAX_CLUSTER_BITS,
  MAX_L1_BYTES,
  MAX_REFCOUNT_TABLE_BYTES,
  MAX_SNAPSHOTS,
  MIN_CLUSTER_BITS,
  MIN_EXTENDED_CLUSTER_BITS,
  SECTOR_BYTES,
  SUBCLUSTERS,
} from './layout.ts';

export interface Qcow2Header {
  readonly version: 2 | 3;
  readonly clusterBits: number;
  readonly clusterBytes: number;
  /** Of an L2 entry: 16 where clusters have subclusters, else 8. */
  readonly l2EntryBytes: number;
  /** The unit that is unallocated, zero or data: the cluster, or its 32nd part. */
  readonly subclusterBytes: number;
  /** The header's `size`, whole sectors of it: what the guest sees. */
  readonly virtualSizeBytes: number;
  readonly cryptMethod: number;
  readonly l1Entries: number;
  readonly l1Offset: number;
  readonly refcountTableOffset: number;
  readonly refcountTableClusters: number;
  /** Width of a refcount in bits: 1, 2, 4, … 64. */
  readonly refcountBits: number;
  readonly snapshots: number;
  readonly snapshotsOffset: number;
  /** The lower 32 of its 64 bits. */
  readonly incompatible: number;
  /** The upper 32: none of them is known. */
  readonly incompatibleHigh: number;
  readonly compatible: number;
  readonly autoclear: number;
  /** The upper 32: the mark of a restart journal (journal-mark.ts), or nothing that is known. */
  readonly autoclearHigh: number;
  readonly headerBytes: number;
  readonly compressionType: number;
  readonly backing: BackingLink | null;
  readonly extensions: readonly Extension[];
}

/** Guest bytes that one L1 entry stands for. */
export const bytesPerL1Entry = ({
  clusterBytes,
  l2EntryBytes,
}: Pick<Qcow2Header, 'clusterBytes' | 'l2EntryBytes'>): number =>
  (clusterBytes / l2EntryBytes) * clusterBytes;

/** As a rule a header, its extensions and the backing file's name take less than 1 KiB of their cluster. */
const USUAL_HEADER_BYTES = 4096;
/** Memory for them, which parsed headers do not refer to. */
const freeStarts: Uint8Array[] = [];
const MAX_FREE_STARTS = 16;

/** Reads the header cluster's start and checks it. Errors: EIO kind invalid-image naming the field; EOPNOTSUPP. */
export const readHeader = async (file: Node, path: string): Promise<Qcow2Header> => {
  if (file.lengthBytes < HEADER_V2_BYTES) {
    throw invalidImage(`is too short for a qcow2 header (${file.lengthBytes} bytes)`, { path });
  }
  const start = freeStarts.pop() ?? new Uint8Array(USUAL_HEADER_BYTES);
  let clusterBytes: number;
  try {
    await file.readClipped(guestOffset(0), start);
    const clusterBits = viewOf(start).getUint32(HEADER.clusterBits);
    checkClusterBits(clusterBits, path);
    clusterBytes = 2 ** clusterBits;
    const head = start.subarray(0, clusterBytes);
    if (holdsHeader(head, clusterBytes)) return parseHeader(head, file.lengthBytes, path);
  } finally {
    if (freeStarts.length < MAX_FREE_STARTS) freeStarts.push(start);
  }
  const cluster = new Uint8Array(clusterBytes);
  await file.readClipped(guestOffset(0), cluster);
  return parseHeader(cluster, file.lengthBytes, path);
};

/** Whether all that a header has lies in these first bytes of its cluster, as far as it can be followed. */
const holdsHeader = (head: Uint8Array, clusterBytes: number): boolean => {
  if (head.length >= clusterBytes) return true;
  const view = viewOf(head);
  const nameOffset = readU64BE(view, HEADER.backingOffset);
  const nameEnd = nameOffset === 0 ? 0 : nameOffset + view.getUint32(HEADER.backingSize);
  const isVersion3 = view.getUint32(HEADER.version) === 3;
  const start = isVersion3 ? view.getUint32(HEADER.headerLength) : HEADER_V2_BYTES;
  return nameEnd <= head.length && extensionsAreIn(head, start, extensionsEnd(view, clusterBytes));
};

const checkClusterBits = (clusterBits: number, path: string): void => {
  if (clusterBits >= MIN_CLUSTER_BITS && clusterBits <= MAX_CLUSTER_BITS) return;
  throw invalidImage(`header field cluster_bits is ${clusterBits}, not 9 to 21`, {
    path,
    offset: HEADER.clusterBits,
  });
};

/**
 * `cluster`: the first cluster of the file, zeros past its end; less of it where the header ends before. Errors: as
 * `readHeader`.
 */
export const parseHeader = (cluster: Uint8Array, fileBytes: number, path: string): Qcow2Header => {
  const view = viewOf(cluster);
  const bad = (field: keyof typeof HEADER, value: number | string, why: string): BlockError =>
    invalidImage(`header field ${FIELD_NAME[field]} is ${value}, ${why}`, {
      path,
      offset: HEADER[field],
    });
  const magic = view.getUint32(HEADER.magic);
  if (magic !== MAGIC) throw bad('magic', hex(magic), 'not that of qcow2');
  const version = view.getUint32(HEADER.version);
  if (version !== 2 && version !== 3) {
    const message = `header field version is ${version}: only 2 and 3 are known`;
    throw new BlockError({ kind: 'unsupported', message, path, op: 'open' });
  }
  const clusterBits = view.getUint32(HEADER.clusterBits);
  checkClusterBits(clusterBits, path);
  const clusterBytes = 2 ** clusterBits;
  const v3 = version === 3 ? readV3(view, clusterBytes, bad) : V2_DEFAULTS;
  const size = readU64BE(view, HEADER.size);
  if (Number.isNaN(size)) throw bad('size', 'past 2^53', 'more than is handled');
  const extensions = readExtensions(
    cluster,
    v3.headerBytes,
    extensionsEnd(view, clusterBytes),
    path,
  );
  const isExtended = (v3.incompatible & INCOMPATIBLE.extendedL2) !== 0;
  if (isExtended && clusterBits < MIN_EXTENDED_CLUSTER_BITS) {
    throw bad(
      'clusterBits',
      clusterBits,
      'too few for extended L2 entries, which need 14 (16 KiB)',
    );
  }
  // Each field by name: spreading them takes ten times as long, for each image of a scan.
  const header: Qcow2Header = {
    headerBytes: v3.headerBytes,
    refcountBits: v3.refcountBits,
    incompatible: v3.incompatible,
    incompatibleHigh: v3.incompatibleHigh,
    compatible: v3.compatible,
    autoclear: v3.autoclear,
    autoclearHigh: v3.autoclearHigh,
    compressionType: v3.compressionType,
    version: version as 2 | 3,
    clusterBits,
    clusterBytes,
    l2EntryBytes: isExtended ? EXTENDED_ENTRY_BYTES : ENTRY_BYTES,
    subclusterBytes: isExtended ? clusterBytes / SUBCLUSTERS : clusterBytes,
    virtualSizeBytes: size - (size % SECTOR_BYTES),
    cryptMethod: view.getUint32(HEADER.cryptMethod),
    l1Entries: view.getUint32(HEADER.l1Size),
    l1Offset: readU64BE(view, HEADER.l1Offset),
    refcountTableOffset: readU64BE(view, HEADER.refcountTableOffset),
    refcountTableClusters: view.getUint32(HEADER.refcountTableClusters),
    snapshots: view.getUint32(HEADER.snapshots),
    snapshotsOffset: readU64BE(view, HEADER.snapshotsOffset),
    backing: readBacking(cluster, extensions, bad),
    extensions,
  };
  checkTables(header, fileBytes, bad);
  return header;
};

type Bad = (field: keyof typeof HEADER, value: number | string, why: string) => BlockError;

const FIELD_NAME: Record<keyof typeof HEADER, string> = {
  magic: 'magic',
  version: 'version',
  backingOffset: 'backing_file_offset',
  backingSize: 'backing_file_size',
  clusterBits: 'cluster_bits',
  size: 'size',
  cryptMethod: 'crypt_method',
  l1Size: 'l1_size',
  l1Offset: 'l1_table_offset',
  refcountTableOffset: 'refcount_table_offset',
  refcountTableClusters: 'refcount_table_clusters',
  snapshots: 'nb_snapshots',
  snapshotsOffset: 'snapshots_offset',
  incompatible: 'incompatible_features',
  compatible: 'compatible_features',
  autoclear: 'autoclear_features',
  refcountOrder: 'refcount_order',
  headerLength: 'header_length',
  compressionType: 'compression_type',
};

const V2_DEFAULTS = {
  refcountBits: 16,
  incompatible: 0,
  incompatibleHigh: 0,
  compatible: 0,
  autoclear: 0,
  autoclearHigh: 0,
  headerBytes: HEADER_V2_BYTES,
  compressionType: 0,
};

const readV3 = (view: DataView, clusterBytes: number, bad: Bad): typeof V2_DEFAULTS => {
  const headerBytes = view.getUint32(HEADER.headerLength);
  // It should be a multiple of 8, which nobody looks at.
  if (headerBytes < HEADER_V3_BYTES || headerBytes > clusterBytes) {
    throw bad('headerLength', headerBytes, `not from ${HEADER_V3_BYTES} to the cluster size`);
  }
  const refcountOrder = view.getUint32(HEADER.refcountOrder);
  if (refcountOrder > 6) throw bad('refcountOrder', refcountOrder, 'not 0 to 6');
  const low = (field: number): number => view.getUint32(field + 4);
  return {
    headerBytes,
    refcountBits: 2 ** refcountOrder,
    incompatible: low(HEADER.incompatible),
    incompatibleHigh: view.getUint32(HEADER.incompatible),
    compatible: low(HEADER.compatible),
    autoclear: low(HEADER.autoclear),
    autoclearHigh: view.getUint32(HEADER.autoclear),
    compressionType:
      headerBytes > HEADER.compressionType ? view.getUint8(HEADER.compressionType) : 0,
  };
};

/** Extensions end where the backing file's name begins, or with the cluster. */
const extensionsEnd = (view: DataView, clusterBytes: number): number => {
  const nameOffset = readU64BE(view, HEADER.backingOffset);
  return nameOffset > 0 && nameOffset < clusterBytes ? nameOffset : clusterBytes;
};

const readBacking = (
  cluster: Uint8Array,
  extensions: readonly Extension[],
  bad: Bad,
): BackingLink | null => {
  const view = viewOf(cluster);
  const offset = readU64BE(view, HEADER.backingOffset);
  const size = view.getUint32(HEADER.backingSize);
  if (offset === 0) return null;
  if (size > MAX_BACKING_NAME_BYTES) {
    throw bad('backingSize', size, `more than ${MAX_BACKING_NAME_BYTES}`);
  }
  if (!(offset + size <= cluster.length)) {
    throw bad(
      'backingOffset',
      Number.isNaN(offset) ? 'past 2^53' : hex(offset),
      'the name reaches past the header cluster',
    );
  }
  if (size === 0) return null;
  const filename = Buffer.from(cluster.subarray(offset, offset + size)).toString('utf8');
  return { filename, format: backingFormatOf(extensions) };
};

const checkTables = (h: Qcow2Header, fileBytes: number, bad: Bad): void => {
  const { clusterBytes } = h;
  const place = (
    field: 'l1Offset' | 'refcountTableOffset' | 'snapshotsOffset',
    lengthBytes: number,
  ): void => {
    const offset = h[field];
    if (Number.isNaN(offset)) throw bad(field, 'past 2^53', 'more than is handled');
    if (!isAligned(offset, clusterBytes))
      throw bad(field, hex(offset), 'not a multiple of the cluster size');
    if (offset < clusterBytes) throw bad(field, hex(offset), 'inside the header');
    if (offset + lengthBytes > divideUp(fileBytes, clusterBytes) * clusterBytes) {
      throw bad(
        field,
        hex(offset),
        `the table of ${lengthBytes} bytes there reaches past the end of the file (${fileBytes} bytes)`,
      );
    }
  };
  if (h.l1Entries * ENTRY_BYTES > MAX_L1_BYTES)
    throw bad('l1Size', h.l1Entries, 'a table of more than 32 MiB');
  const needed = divideUp(h.virtualSizeBytes, bytesPerL1Entry(h));
  if (h.l1Entries < needed)
    throw bad('l1Size', h.l1Entries, `too few for the virtual size, which needs ${needed}`);
  if (h.l1Entries > 0) place('l1Offset', h.l1Entries * ENTRY_BYTES);
  const tableBytes = h.refcountTableClusters * clusterBytes;
  if (tableBytes > MAX_REFCOUNT_TABLE_BYTES) {
    throw bad('refcountTableClusters', h.refcountTableClusters, 'a table of more than 8 MiB');
  }
  if (h.refcountTableClusters === 0)
    throw bad('refcountTableClusters', 0, 'but an image has refcounts');
  place('refcountTableOffset', tableBytes);
  if (h.snapshots > MAX_SNAPSHOTS)
    throw bad('snapshots', h.snapshots, `more than ${MAX_SNAPSHOTS}`);
  if (h.snapshots > 0) place('snapshotsOffset', 0);
  const hasDataFile = (h.incompatible & INCOMPATIBLE.dataFile) !== 0;
  if ((h.autoclear & AUTOCLEAR.rawDataFile) !== 0 && !hasDataFile)
    throw bad('autoclear', h.autoclear, 'a raw external data file, but there is no data file');
  const isMarked = (h.incompatible & INCOMPATIBLE.compressionType) !== 0;
  if (isMarked !== (h.compressionType !== COMPRESSION.zlib)) {
    const found = isMarked ? 'set' : 'not set';
    throw bad('compressionType', h.compressionType, `but incompatible feature bit 3 is ${found}`);
  }
  if (h.cryptMethod > 2) throw bad('cryptMethod', h.cryptMethod, 'not 0, 1 (AES) or 2 (LUKS)');
};

const KNOWN_INCOMPATIBLE =
  INCOMPATIBLE.dirty |
  INCOMPATIBLE.corrupt |
  INCOMPATIBLE.dataFile |
  INCOMPATIBLE.compressionType |
  INCOMPATIBLE.extendedL2;

/** What this driver cannot open, by name. Errors: EOPNOTSUPP. */
export const refuseUnsupported = (header: Qcow2Header, path: string): void => {
  const refuse = (what: string, hint?: string): never => {
    throw new BlockError({
      kind: 'unsupported',
      message: `needs ${what}, which is not supported`,
      hint,
      path,
      op: 'open',
    });
  };
  const unknown = (header.incompatible & ~KNOWN_INCOMPATIBLE) >>> 0;
  const high = header.incompatibleHigh;
  if (unknown !== 0 || high !== 0) {
    const bits = [...bitsOf(unknown), ...bitsOf(high).map((b) => b + 32)];
    const names = bits.map(
      (bit) => featureName(header.extensions, bit) ?? `incompatible feature bit ${bit}`,
    );
    refuse(names.map((n) => `'${n}'`).join(', '));
  }
  if (header.compressionType > COMPRESSION.zstd)
    refuse(`compression type ${header.compressionType}`);
};

const bitsOf = (word: number): number[] =>
  Array.from({ length: 32 }, (_, bit) => bit).filter((bit) => ((word >>> bit) & 1) === 1);

/** What a check of the tables needs of the header. */
export const checkShapeOf = (header: Qcow2Header): CheckShape => ({
  clusterBytes: header.clusterBytes,
  l2EntryBytes: header.l2EntryBytes,
  virtualSizeBytes: header.virtualSizeBytes,
  refcountBits: header.refcountBits,
  hasDataFile: (header.incompatible & INCOMPATIBLE.dataFile) !== 0,
  l1: { offset: header.l1Offset, lengthBytes: header.l1Entries * ENTRY_BYTES },
  refcountTable: {
    offset: header.refcountTableOffset,
    lengthBytes: header.refcountTableClusters * header.clusterBytes,
  },
});
