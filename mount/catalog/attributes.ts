/** What stat(2) and getxattr(2) say of an image. */
import { divideUp } from '../../src/base/range.ts';
import type { Node } from '../../src/block/node.ts';
import type { View } from '../../src/block/view.ts';
import type { FileAttributes } from '../directory.ts';
import type { HostFile } from './host-file.ts';
import type { Inspection } from './inspection.ts';

/** A view is data: neither executable nor set-id, whatever its file is. */
const FILE_MODE_MASK = 0o666;
const WRITE_BITS = 0o222;
const BLOCK_BYTES = 512;

export interface ImageSizes {
  readonly virtualSizeBytes: number;
  /** What the image takes on the host. */
  readonly allocatedBytes: number;
}

/** Of an open image, else of what was found when it was looked at. */
export const sizesOf = async (
  root: Node | null,
  { description, dataFiles, chain }: Inspection,
  host: HostFile,
): Promise<ImageSizes> => {
  if (root?.isOpen === true) {
    const allocatedBytes = await root.driver
      .allocatedBytes()
      .catch(() => host.blocks * BLOCK_BYTES);
    return { virtualSizeBytes: root.lengthBytes, allocatedBytes };
  }
  const inDataFiles = dataFiles.reduce((sum, file) => sum + file.allocatedBytes, 0);
  const own = chain[0]?.remote?.lengthBytes ?? host.blocks * BLOCK_BYTES;
  return {
    virtualSizeBytes: description?.virtualSizeBytes ?? 0,
    allocatedBytes: own + inDataFiles,
  };
};

/** Owner, mode and times are the image file's; an image that cannot be opened has size 0 and mode 0. */
export const fileAttributesOf = (image: {
  readonly host: HostFile;
  readonly virtualSizeBytes: number;
  readonly allocatedBytes: number;
  readonly broken: boolean;
  readonly view: View;
}): FileAttributes => {
  const { host, broken, view } = image;
  const mode = host.mode & FILE_MODE_MASK;
  return {
    sizeBytes: broken ? 0 : image.virtualSizeBytes,
    blocks: broken ? 0 : divideUp(image.allocatedBytes, BLOCK_BYTES),
    mode: broken ? 0 : view.readOnly ? mode & ~WRITE_BITS : mode,
    uid: host.uid,
    gid: host.gid,
    accessTimeMs: host.accessTimeMs,
    modifyTimeMs: host.modifyTimeMs,
    changeTimeMs: host.changeTimeMs,
  };
};

/** The mount's root: the source directory's owner, mode and times. */
export const rootAttributesOf = (host: HostFile): FileAttributes => ({
  sizeBytes: 0,
  blocks: 0,
  mode: host.mode,
  uid: host.uid,
  gid: host.gid,
  accessTimeMs: host.accessTimeMs,
  modifyTimeMs: host.modifyTimeMs,
  changeTimeMs: host.changeTimeMs,
});

const REMOTE_ROOT_MODE = 0o755;
const STARTED_MS = Date.now();

/** The mount's root where no source is a file of this machine: of whoever mounts, since the engine began. */
export const remoteRootAttributes = (): FileAttributes => ({
  sizeBytes: 0,
  blocks: 0,
  mode: REMOTE_ROOT_MODE,
  uid: process.getuid?.() ?? 0,
  gid: process.getgid?.() ?? 0,
  accessTimeMs: STARTED_MS,
  modifyTimeMs: STARTED_MS,
  changeTimeMs: STARTED_MS,
});

/** `.backing` is the path of the first backing file, or its name in the header when it cannot be found; absent without one. */
export const extendedAttributesOf = (image: {
  readonly virtualSizeBytes: number;
  readonly allocatedBytes: number;
  readonly inspection: Inspection;
  readonly jobs: readonly object[];
  readonly active: boolean;
}): ReadonlyMap<string, string> => {
  const { description, driver, chain } = image.inspection;
  const values = new Map<string, string>();
  const set = (name: string, value: string): Map<string, string> =>
    values.set(`user.vdiskfs.${name}`, value);
  set('format', driver?.name ?? 'unknown');
  set('virtual-size', String(image.virtualSizeBytes));
  set('allocated', String(image.allocatedBytes));
  const backing = chain[1]?.path ?? description?.backing?.filename;
  if (backing !== undefined) set('backing', backing);
  set('dirty', String(description?.dirty ?? false));
  set('jobs', JSON.stringify(image.jobs));
  set('active', String(image.active));
  return values;
};
