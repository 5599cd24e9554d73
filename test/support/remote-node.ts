/** A protocol node over a URL, without a graph. */
import { type Log, silentLog } from '../../src/base/log.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { DriverDescriptor } from '../../src/block/driver.ts';
import { Node } from '../../src/block/node.ts';
import type { RemoteCredential } from '../../src/block/remote-access.ts';
import type { Cleanup } from './scratch.ts';

export interface RemoteNodeOptions {
  readonly readOnly?: boolean;
  readonly credentials?: readonly RemoteCredential[];
  readonly log?: Log;
}

/** Opened, and closed when the test ends. */
export const remoteNode = async (
  t: Cleanup,
  descriptor: DriverDescriptor,
  path: string,
  options: RemoteNodeOptions = {},
): Promise<Node> => {
  const { readOnly = true, credentials = [], log = silentLog } = options;
  const request = { path, readOnly, create: false, cache: 'writeback', log, credentials } as const;
  const driver = await descriptor.openPath?.(request);
  if (driver === undefined) throw new Error(`${descriptor.name} opens nothing`);
  const node = new Node({ name: '#remote', path, descriptor, readOnly, file: null });
  node.attach(driver);
  t.after(() => node.close());
  return node;
};

export const readBytes = async (
  node: Node,
  offset: number,
  lengthBytes: number,
): Promise<Buffer> => {
  const bytes = Buffer.alloc(lengthBytes, 0xa5);
  await node.read(guestOffset(offset), bytes);
  return bytes;
};

/** Bytes that differ from place to place, none of them 0. */
export const patternBytes = (lengthBytes: number, seed = 0): Buffer => {
  const bytes = Buffer.alloc(lengthBytes);
  for (let i = 0; i < lengthBytes; i++) bytes[i] = 1 + ((i * 7 + (i >> 8) + seed) % 255);
  return bytes;
};
