/** The first cluster of a new qcow2 image (specification: "Header", "Header extensions"). */
import { BlockError } from '../../src/base/block-error.ts';
import { viewOf, writeU64BE } from '../../src/base/byte-order.ts';
import { divideUp } from '../../src/base/range.ts';
import { type HostCluster, hostOffsetOfCluster } from '../../src/base/units.ts';
import type { BackingLink } from '../../src/block/image-description.ts';
import { AUTOCLEAR, CRYPT_METHOD, EXTENSION, INCOMPATIBLE } from './layout.ts';

const HEADER_BYTES = { 2: 72, 3: 112 } as const;
const MAX_BACKING_NAME_BYTES = 1023;

/** A run of host clusters. */
export interface Run {
  readonly first: HostCluster;
  readonly clusters: number;
}

/** Where everything of a new image lies. */
export interface Layout {
  readonly clusterBits: number;
  readonly clusterBytes: number;
  readonly version: 2 | 3;
  readonly refcountBits: number;
  readonly lazyRefcounts: boolean;
  readonly compressionType: number;
  readonly extendedL2: boolean;
  readonly preallocation: 'off' | 'metadata' | 'falloc' | 'full';
  /** Null: guest clusters lie in the image. */
  readonly dataFile: { readonly name: string; readonly isRaw: boolean } | null;
  readonly virtualSizeBytes: number;
  readonly l1Entries: number;
  readonly refcountTable: Run;
  readonly refcountBlocks: Run;
  readonly l1: Run;
  /** The LUKS header; null without encryption. */
  readonly encryption: { readonly run: Run; readonly lengthBytes: number } | null;
  readonly l2: Run;
  readonly data: Run;
  /** Guest clusters that the tables map from the start. */
  readonly mappedClusters: number;
  /** Clusters in use, all from 0 on. */
  readonly clusters: number;
}

/** One cluster. Errors: EINVAL for a backing name that does not fit. */
export const encodeHeader = (l: Layout, backing: BackingLink | null, path: string): Uint8Array => {
  const header = new Uint8Array(l.clusterBytes);
  const view = viewOf(header);
  view.setUint32(0, 0x514649fb);
  view.setUint32(4, l.version);
  view.setUint32(20, l.clusterBits);
  writeU64BE(view, 24, l.virtualSizeBytes);
  if (l.encryption !== null) view.setUint32(32, CRYPT_METHOD.luks);
  view.setUint32(36, l.l1Entries);
  writeU64BE(view, 40, l.l1Entries === 0 ? 0 : hostOffsetOfCluster(l.l1.first, l.clusterBytes));
  writeU64BE(view, 48, hostOffsetOfCluster(l.refcountTable.first, l.clusterBytes));
  view.setUint32(56, l.refcountTable.clusters);
  if (l.version === 3) {
    const packing = l.compressionType === 0 ? 0 : INCOMPATIBLE.compressionType;
    const outside = l.dataFile === null ? 0 : INCOMPATIBLE.dataFile;
    const entries = l.extendedL2 ? INCOMPATIBLE.extendedL2 : 0;
    writeU64BE(view, 72, packing | outside | entries);
    writeU64BE(view, 88, l.dataFile?.isRaw === true ? AUTOCLEAR.rawDataFile : 0);
    writeU64BE(view, 80, l.lazyRefcounts ? 1 : 0);
    view.setUint32(96, Math.log2(l.refcountBits));
    view.setUint32(100, HEADER_BYTES[3]);
    view.setUint8(104, l.compressionType);
  }
  const name = new TextEncoder().encode(backing?.filename ?? '');
  if (name.length > MAX_BACKING_NAME_BYTES) {
    throw wrongOption(
      path,
      'backing_file',
      `its name is longer than ${MAX_BACKING_NAME_BYTES} bytes`,
    );
  }
  const extensions = encodeExtensions(l, backing);
  const end = HEADER_BYTES[l.version] + extensions.length;
  if (end + name.length > l.clusterBytes) {
    throw wrongOption(
      path,
      'backing_file',
      `the names do not fit a cluster of ${l.clusterBytes} bytes`,
    );
  }
  header.set(extensions, HEADER_BYTES[l.version]);
  if (name.length > 0) {
    header.set(name, end);
    writeU64BE(view, 8, end);
    view.setUint32(16, name.length);
  }
  return header;
};

/** As qemu-img has it: clusters up to this size go without the names. */
const FEATURE_NAMES_ABOVE_BYTES = 4096;

/** Feature bits by type (0 incompatible, 1 compatible, 2 autoclear), bit and name: so that old programs can name what they lack. */
const FEATURE_NAMES: readonly (readonly [type: number, bit: number, name: string])[] = [
  [0, 0, 'dirty bit'],
  [0, 1, 'corrupt bit'],
  [0, 2, 'external data file'],
  [0, 3, 'compression type'],
  [0, 4, 'extended L2 entries'],
  [1, 0, 'lazy refcounts'],
  [2, 0, 'bitmaps'],
  [2, 1, 'raw external data'],
];

const encodeExtensions = (l: Layout, backing: BackingLink | null): Uint8Array => {
  const encoder = new TextEncoder();
  const parts: Uint8Array[] = [];
  if (backing !== null && backing.format !== null) {
    parts.push(encodeExtension(EXTENSION.backingFormat, encoder.encode(backing.format)));
  }
  if (l.dataFile !== null)
    parts.push(encodeExtension(EXTENSION.dataFile, encoder.encode(l.dataFile.name)));
  if (l.encryption !== null) {
    const pointer = new Uint8Array(16);
    writeU64BE(viewOf(pointer), 0, hostOffsetOfCluster(l.encryption.run.first, l.clusterBytes));
    writeU64BE(viewOf(pointer), 8, l.encryption.lengthBytes);
    parts.push(encodeExtension(EXTENSION.encryption, pointer));
  }
  // It only explains, so it leaves the room of a small cluster to what matters.
  if (l.version === 3 && l.clusterBytes > FEATURE_NAMES_ABOVE_BYTES) {
    const table = new Uint8Array(FEATURE_NAMES.length * 48);
    FEATURE_NAMES.forEach(([type, bit, name], i) => {
      table.set([type, bit, ...encoder.encode(name)], i * 48);
    });
    parts.push(encodeExtension(EXTENSION.featureNames, table));
  }
  const end = encodeExtension(EXTENSION.end, new Uint8Array(0));
  return Buffer.concat([...parts, end]);
};

const encodeExtension = (type: number, content: Uint8Array): Uint8Array => {
  const bytes = new Uint8Array(8 + divideUp(content.length, 8) * 8);
  const view = viewOf(bytes);
  view.setUint32(0, type);
  view.setUint32(4, content.length);
  bytes.set(content, 8);
  return bytes;
};

/** An option that cannot be. */
export const wrongOption = (path: string, option: string, message: string): BlockError =>
  new BlockError({ kind: 'bad-request', message: `${option}: ${message}`, path, op: 'create' });
