/** The qcow2 format, versions 2 and 3. */
import { readU64BE, viewOf } from '../../src/base/byte-order.ts';
import type {
  CheckRequest,
  CheckResult,
  DriverDescriptor,
  ImageDescription,
} from '../../src/block/driver.ts';
import type { Node } from '../../src/block/node.ts';
import { checkTables } from './check.ts';
import type { BitmapDirectory } from './check-bitmaps.ts';
import { checkCreate, create, createOptions } from './create.ts';
import { checkShapeOf, type Qcow2Header, readHeader, refuseUnsupported } from './header.ts';
import { openQcow2 } from './image.ts';
import { AUTOCLEAR, COMPATIBLE, EXTENSION, INCOMPATIBLE, MAGIC } from './layout.ts';
import { repairTables } from './repair.ts';
import { readSnapshotTable } from './snapshot-table.ts';

// Version 1 is the format qcow, which is another. Later versions than are known are claimed, and then refused by name.
const probe = (head: Uint8Array): number =>
  head.length >= 8 && viewOf(head).getUint32(0) === MAGIC && viewOf(head).getUint32(4) >= 2
    ? 100
    : 0;

const formatSpecific = (h: Qcow2Header): Record<string, unknown> => {
  const common = {
    compat: h.version === 2 ? '0.10' : '1.1',
    'compression-type': h.compressionType === 1 ? 'zstd' : 'zlib',
  };
  if (h.version === 2) return { ...common, 'refcount-bits': h.refcountBits };
  return {
    ...common,
    'lazy-refcounts': (h.compatible & COMPATIBLE.lazyRefcounts) !== 0,
    'refcount-bits': h.refcountBits,
    corrupt: (h.incompatible & INCOMPATIBLE.corrupt) !== 0,
    'extended-l2': (h.incompatible & INCOMPATIBLE.extendedL2) !== 0,
  };
};

const inspect = async (file: Node, path: string): Promise<ImageDescription> => {
  const header = await readHeader(file, path);
  refuseUnsupported(header, path);
  const { snapshots } = await readSnapshotTable(file, header, path);
  return {
    format: 'qcow2',
    virtualSizeBytes: header.virtualSizeBytes,
    clusterBytes: header.clusterBytes,
    backing: header.backing,
    dataFiles: [],
    dirty: (header.incompatible & INCOMPATIBLE.dirty) !== 0,
    corrupt: (header.incompatible & INCOMPATIBLE.corrupt) !== 0,
    encrypted: header.cryptMethod !== 0,
    compressed: false,
    snapshots: snapshots.map((s) => s.description),
    formatSpecific: formatSpecific(header),
  };
};

/** Null when there are no bitmaps, or when the autoclear bit says that they are out of date. */
const bitmapsOf = (header: Qcow2Header): BitmapDirectory | null => {
  const content = header.extensions.find((e) => e.type === EXTENSION.bitmaps)?.content;
  if (content === undefined || content.length < 24) return null;
  if ((header.autoclear & AUTOCLEAR.bitmaps) === 0) return null;
  const view = viewOf(content);
  const place = { lengthBytes: readU64BE(view, 8), offset: readU64BE(view, 16) };
  return { bitmaps: view.getUint32(0), place };
};

const check = async ({ file, path, repair }: CheckRequest): Promise<CheckResult> => {
  const header = await readHeader(file, path);
  refuseUnsupported(header, path);
  const table = await readSnapshotTable(file, header, path);
  const snapshots = table.snapshots.map((s) => ({
    name: s.description.name,
    l1: { offset: s.l1Offset, lengthBytes: s.l1Entries * 8 },
  }));
  const place = { offset: header.snapshotsOffset, lengthBytes: table.lengthBytes };
  const others = header.snapshots === 0 ? [] : [{ what: 'the snapshot table', place }];
  const shape = checkShapeOf(header);
  const targets = { snapshots, others, bitmaps: bitmapsOf(header) };
  if (repair === 'none') return checkTables(file, shape, targets);
  return repairTables({ file, shape, targets, mode: repair, version: header.version });
};

export const qcow2: DriverDescriptor = {
  name: 'qcow2',
  role: 'format',
  capabilities: {
    write: true,
    backing: true,
    zeroWithoutSpace: true,
    discard: true,
    grow: true,
    shrink: true,
    create: true,
    check: true,
    repair: 'todo',
    internalSnapshots: 'todo',
    compressedWrite: true,
  },
  probe,
  inspect,
  open: openQcow2,
  createOptions,
  checkCreate,
  create,
  check,
};
