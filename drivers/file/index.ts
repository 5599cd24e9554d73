/**
 * The `file` protocol: a regular file or block device of the host, through Node's asynchronous file I/O. Here it is opened; host-file.ts
 * is what is open.
 */
import { constants } from 'node:fs';
import { type FileHandle, open, statfs } from 'node:fs/promises';
import { toBlockError } from '../../src/base/block-error.ts';
import type { DriverDescriptor, DriverInstance, OpenPathRequest } from '../../src/block/driver.ts';
import { endOf } from '../../src/os/file-ranges.ts';
import { isLocalFileSystem } from '../../src/os/local-file-systems.ts';
import { openDirect } from './direct-io.ts';
import { HostFile } from './host-file.ts';
import { openLookedAt } from './looked-at.ts';

const openPath = async (request: OpenPathRequest): Promise<DriverInstance> => {
  const { path, readOnly, create, cache, lookedAtOn = null } = request;
  const lookedAt = lookedAtOn === null ? null : openLookedAt(path, lookedAtOn);
  if (lookedAt !== null) return lookedAt;
  let flags = readOnly ? constants.O_RDONLY : constants.O_RDWR;
  if (create) flags |= constants.O_CREAT | constants.O_EXCL;
  const direct = cache === 'none' ? await openDirect(path, flags) : null;
  const handle = direct?.handle ?? (await openCached(path, flags));
  try {
    const s = await handle.stat();
    const isBlockDevice = s.isBlockDevice();
    const lengthBytes = isBlockDevice ? endOf(handle.fd) : s.size;
    const { type } = await statfs(path);
    const localFileSystem = s.isFile() && isLocalFileSystem(type) ? type : null;
    const takesSpaceAhead =
      request.growsHereAlone === true && !readOnly && direct === null && localFileSystem !== null;
    return new HostFile(handle, {
      path,
      lengthBytes,
      flushes: cache !== 'unsafe',
      direct,
      isBlockDevice,
      localFileSystem,
      device: s.dev,
      takesSpaceAhead,
    });
  } catch (error) {
    await (direct ?? handle).close();
    throw toBlockError(error, { op: 'open', path });
  }
};

const openCached = (path: string, flags: number): Promise<FileHandle> =>
  open(path, flags, 0o644).catch((error: unknown) => {
    throw toBlockError(error, { op: 'open', path });
  });

export const file: DriverDescriptor = {
  name: 'file',
  role: 'protocol',
  capabilities: {
    write: true,
    backing: false,
    zeroWithoutSpace: true,
    discard: true,
    grow: true,
    shrink: true,
    create: true,
    check: false,
    repair: false,
    internalSnapshots: false,
    compressedWrite: false,
  },
  createOptions: [],
  openPath,
};
