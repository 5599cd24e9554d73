/** A directory of views without images, for tests of the session alone. */

import {
  type Directory,
  type Entry,
  type FileAttributes,
  ROOT_NODE_ID,
} from '../../mount/directory.ts';
import { silentLog } from '../../src/base/log.ts';
import type { DriverDescriptor, DriverInstance } from '../../src/block/driver.ts';
import { Node } from '../../src/block/node.ts';
import { View } from '../../src/block/view.ts';

const DESCRIPTOR: DriverDescriptor = {
  name: 'memory',
  role: 'protocol',
  capabilities: {
    write: true,
    backing: false,
    zeroWithoutSpace: false,
    discard: false,
    grow: false,
    shrink: false,
    create: false,
    check: false,
    repair: false,
    internalSnapshots: false,
    compressedWrite: false,
  },
  createOptions: [],
};

/** A view whose reads and writes are what `transfer` does with the buffer. */
export const memoryView = (
  name: string,
  lengthBytes: number,
  transfer: (buffer: Uint8Array) => Promise<void>,
): View => {
  const driver: DriverInstance = {
    lengthBytes,
    clusterBytes: 1,
    backingLink: null,
    mapping: (_offset, length) => ({ kind: 'opaque', lengthBytes: length }),
    read: (_offset, buffer) => transfer(buffer),
    write: (_offset, buffer) => transfer(buffer),
    flush: async () => undefined,
    allocatedBytes: async () => lengthBytes,
    close: async () => undefined,
  };
  return new View({
    name,
    readOnlyReason: null,
    allowShrink: false,
    log: silentLog,
    open: async () => {
      const node = new Node({
        name,
        path: name,
        descriptor: DESCRIPTOR,
        readOnly: false,
        file: null,
      });
      node.attach(driver);
      return node;
    },
    close: (root) => root.close(),
  });
};

const attributesOf = (sizeBytes: number, mode: number): FileAttributes => ({
  sizeBytes,
  blocks: Math.ceil(sizeBytes / 512),
  mode,
  uid: 0,
  gid: 0,
  accessTimeMs: 0,
  modifyTimeMs: 0,
  changeTimeMs: 0,
});

export const memoryDirectory = (views: readonly View[]): Directory => {
  const entries: Entry[] = views.map((view, i) => ({
    nodeId: ROOT_NODE_ID + 1 + i,
    name: view.name,
    view,
    attributes: async () => attributesOf(await view.lengthBytes(), 0o644),
    setTimes: async () => attributesOf(await view.lengthBytes(), 0o644),
    extendedAttributes: async () => new Map(),
  }));
  const none = (): void => undefined;
  return {
    rootAttributes: async () => attributesOf(0, 0o755),
    rootExtendedAttributes: async () => new Map(),
    lookup: async (name) => entries.find((e) => e.name === name) ?? null,
    entries: async () => entries,
    byNodeId: (nodeId) => entries.find((e) => e.nodeId === nodeId) ?? null,
    forgotten: none,
    opened: none,
    released: none,
    space: async () => ({ totalBytes: 1 << 30, freeBytes: 1 << 29, availableBytes: 1 << 29 }),
    onLost: () => undefined,
    onNameChanged: none,
    close: async () => undefined,
  };
};
