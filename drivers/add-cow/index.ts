/** The add-cow format: a plain image file, and a file that says which of its clusters hold data (docs/ADD-COW.md). */
import type { DriverDescriptor } from '../../src/block/driver.ts';
import type { ImageDescription } from '../../src/block/image-description.ts';
import type { Node } from '../../src/block/node.ts';
import { checkCreate, create, createDataFile, createOptions } from './create.ts';
import { layoutOf, readHeader } from './header.ts';

// Older layouts are claimed, and then refused by name.
const probe = (head: Uint8Array): number => (layoutOf(head) === null ? 0 : 100);

const inspect = async (file: Node, path: string): Promise<ImageDescription> => {
  const header = await readHeader(file, path);
  const { isAllAllocated, image, backing } = header;
  return {
    format: 'add-cow',
    virtualSizeBytes: null,
    clusterBytes: header.clusterBytes,
    backing: isAllAllocated ? null : backing,
    dataFiles: [image],
    dirty: false,
    corrupt: false,
    encrypted: false,
    compressed: false,
    snapshots: [],
    formatSpecific: {
      'image-file': image.filename,
      'image-format': image.format,
      'all-allocated': isAllAllocated,
      ...(isAllAllocated && backing !== null ? { 'unused-backing-file': backing.filename } : {}),
      ...(isAllAllocated ? { 'no-longer-needed': NO_LONGER_NEEDED } : {}),
    },
  };
};

const NO_LONGER_NEEDED =
  'the backing file and this file: all data is in the image file (vdiskfs convert --detach)';

export const addCow: DriverDescriptor = {
  name: 'add-cow',
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
    internalSnapshots: false,
    compressedWrite: false,
  },
  probe,
  inspect,
  load: async () => {
    await import('./image.ts');
  },
  open: async (request) => (await import('./image.ts')).openAddCow(request),
  createOptions,
  recordsBackingFormat: true,
  createDataFile,
  checkCreate,
  create,
  check: async (request) => (await import('./check.ts')).check(request),
};
