/** The qcow2 format, versions 2 and 3. */
import { viewOf } from '../../src/base/byte-order.ts';
import type { DriverDescriptor } from '../../src/block/driver.ts';
import type { ImageDescription } from '../../src/block/image-description.ts';
import type { Node } from '../../src/block/node.ts';
import { describeBitmaps, readBitmapDirectory, type StoredBitmap } from './bitmap-directory.ts';
import { checkCreate, create, createDataFile, createOptions } from './create.ts';
import { hasDataFile } from './data-clusters.ts';
import { type Qcow2Header, readHeader, refuseUnsupported } from './header.ts';
import { dataFileNameOf } from './header-extensions.ts';
import {
  AES_READ_ONLY,
  AUTOCLEAR,
  COMPATIBLE,
  CRYPT_METHOD,
  INCOMPATIBLE,
  MAGIC,
} from './layout.ts';
import { readSnapshotTable } from './snapshot-table.ts';

// Version 1 is the format qcow, which is another. Later versions than are known are claimed, and then refused by name.
const probe = (head: Uint8Array): number =>
  head.length >= 8 && viewOf(head).getUint32(0) === MAGIC && viewOf(head).getUint32(4) >= 2
    ? 100
    : 0;

const formatSpecific = (
  h: Qcow2Header,
  encrypt: Record<string, unknown> | null,
  bitmaps: readonly StoredBitmap[],
): Record<string, unknown> => {
  const encryption = encrypt === null ? {} : { encrypt };
  const common = {
    compat: h.version === 2 ? '0.10' : '1.1',
    'compression-type': h.compressionType === 1 ? 'zstd' : 'zlib',
  };
  if (h.version === 2) return { ...common, 'refcount-bits': h.refcountBits, ...encryption };
  return {
    ...common,
    'lazy-refcounts': (h.compatible & COMPATIBLE.lazyRefcounts) !== 0,
    ...(bitmaps.length === 0 ? {} : { bitmaps: describeBitmaps(bitmaps) }),
    'refcount-bits': h.refcountBits,
    ...dataFileInfo(h),
    ...encryption,
    corrupt: (h.incompatible & INCOMPATIBLE.corrupt) !== 0,
    'extended-l2': (h.incompatible & INCOMPATIBLE.extendedL2) !== 0,
  };
};

const dataFileInfo = (h: Qcow2Header): Record<string, unknown> => {
  if (!hasDataFile(h)) return {};
  const name = dataFileNameOf(h.extensions);
  const raw = { 'data-file-raw': (h.autoclear & AUTOCLEAR.rawDataFile) !== 0 };
  return name === null ? raw : { 'data-file': name, ...raw };
};

// Its modules are loaded for images that need them: most commands look at one plain image.
const encryptionOf = async (
  header: Qcow2Header,
  file: Node,
  path: string,
): Promise<Record<string, unknown> | null> => {
  if (header.cryptMethod === CRYPT_METHOD.none) return null;
  const { inspectEncryption } = await import('./encryption/describe.ts');
  return inspectEncryption(header, file, path);
};

const inspect = async (file: Node, path: string): Promise<ImageDescription> => {
  const header = await readHeader(file, path);
  refuseUnsupported(header, path);
  const dataFile = hasDataFile(header) ? dataFileNameOf(header.extensions) : null;
  const { snapshots } = await readSnapshotTable(file, header, path);
  return {
    format: 'qcow2',
    virtualSizeBytes: header.virtualSizeBytes,
    clusterBytes: header.clusterBytes,
    backing: header.backing,
    dataFiles: dataFile === null ? [] : [{ filename: dataFile, format: 'raw' }],
    dirty: (header.incompatible & INCOMPATIBLE.dirty) !== 0,
    corrupt: (header.incompatible & INCOMPATIBLE.corrupt) !== 0,
    encrypted: header.cryptMethod !== CRYPT_METHOD.none,
    readOnlyReason: header.cryptMethod === CRYPT_METHOD.aes ? `it ${AES_READ_ONLY}` : null,
    compressed: false,
    snapshots: snapshots.map((s) => s.description),
    formatSpecific: formatSpecific(
      header,
      await encryptionOf(header, file, path),
      await readBitmapDirectory(file, header, path),
    ),
  };
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
    repair: true,
    internalSnapshots: true,
    compressedWrite: true,
  },
  probe,
  inspect,
  load: async () => {
    await import('./open.ts');
  },
  open: async (request) => (await import('./open.ts')).openQcow2(request),
  createOptions,
  checkCreate,
  createDataFile,
  create,
  check: async (request) => (await import('./check-image.ts')).checkImageFile(request),
};
