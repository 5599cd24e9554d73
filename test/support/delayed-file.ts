/** A `file` protocol whose operations on one file can be made to wait, or to fail. */
import { file as hostFile } from '../../drivers/file/index.ts';
import { present } from '../../src/base/assert.ts';
import { toBlockError } from '../../src/base/block-error.ts';
import type { DriverDescriptor, DriverInstance } from '../../src/block/driver.ts';

export type FileOperation = 'read' | 'write' | 'flush' | 'zero' | 'resize';

export interface Interference {
  /** The host may copy from file to file, too: such a copy is a read and a write. */
  readonly copiesInHost?: boolean;
  /** Awaited before the operation is done; what it throws is its failure. Offsets of the host file; 0 for a flush, the new length for a resize. */
  before: (
    operation: FileOperation,
    offset: number,
    lengthBytes: number,
    path: string,
  ) => Promise<void>;
  /** Awaited when a write is done; what it throws is its failure, of what has reached the file. */
  written?: (offset: number, lengthBytes: number, path: string) => Promise<void>;
  /** A flush that `before` lets fail is remembered, as one is that the host has failed: none succeeds from then on. */
  syncsAreRemembered?: boolean;
  /** Whether what is tried at once is done; without, nothing is. */
  atOnce?: (operation: 'read' | 'write', offset: number, lengthBytes: number) => boolean;
}

/** `path` null: every file. `below`: what opens the file, another of these perhaps. */
export const delayedFile = (
  path: string | null,
  interference: Interference,
  below: DriverDescriptor = hostFile,
): DriverDescriptor => ({
  ...below,
  openPath: async (request) => {
    const inner = present(await below.openPath?.(request), 'the file driver opens paths');
    const isMeant = path === null || request.path === path;
    return isMeant ? interfered(inner, interference, request.path) : inner;
  },
});

const interfered = (
  inner: DriverInstance,
  interference: Interference,
  path: string,
): DriverInstance => {
  const has = <T>(method: T | undefined): T => present(method, 'the file driver has every method');
  const before = (operation: FileOperation, offset: number, length: number): Promise<void> =>
    interference.before(operation, offset, length, path);
  const { hostFd } = inner;
  const inHost: Partial<DriverInstance> =
    interference.copiesInHost !== true || hostFd === undefined
      ? {}
      : {
          hostFd,
          copyIn: async (offset, source, how) => {
            await interference.before('read', source.offset, source.length, source.file.path);
            await before('write', offset, source.length);
            await has(inner.copyIn).call(inner, offset, source, how);
          },
        };
  return {
    ...inHost,
    clusterBytes: inner.clusterBytes,
    backingLink: null,
    growsOnWrite: true,
    get lengthBytes() {
      return inner.lengthBytes;
    },
    mapping: (offset, length) => inner.mapping(offset, length),
    worksAtOnce: interference.atOnce !== undefined,
    readAtOnce: (offset, buffer) =>
      interference.atOnce?.('read', offset, buffer.length) === true &&
      has(inner.readAtOnce).call(inner, offset, buffer),
    writeAtOnce: (offset, buffer) =>
      interference.atOnce?.('write', offset, buffer.length) === true &&
      has(inner.writeAtOnce).call(inner, offset, buffer),
    stores: (offset, length) => has(inner.stores).call(inner, offset, length),
    read: async (offset, buffer) => {
      await before('read', offset, buffer.length);
      await has(inner.read).call(inner, offset, buffer);
    },
    write: async (offset, buffer) => {
      await before('write', offset, buffer.length);
      await has(inner.write).call(inner, offset, buffer);
      await interference.written?.(offset, buffer.length, path);
    },
    writeZeroes: async (offset, length, how) => {
      await before('zero', offset, length);
      await has(inner.writeZeroes).call(inner, offset, length, how);
    },
    discard: async (offset, length) => {
      await before('zero', offset, length);
      await has(inner.discard).call(inner, offset, length);
    },
    allocate: (offset, length) => has(inner.allocate).call(inner, offset, length),
    resize: async (length) => {
      await before('resize', length, 0);
      await has(inner.resize).call(inner, length);
    },
    flush: async () => {
      await before('flush', 0, 0).catch((error: unknown) => {
        if (interference.syncsAreRemembered === true) inner.syncHasFailed?.(toBlockError(error));
        throw error;
      });
      await inner.flush();
    },
    get syncFd() {
      return inner.syncFd;
    },
    syncHasFailed: (error) => inner.syncHasFailed?.(error),
    allocatedBytes: () => inner.allocatedBytes(),
    close: () => inner.close(),
  };
};
