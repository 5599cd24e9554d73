/**
 * What is refused before a driver hears of it: changes of what is open read-only, ranges past the end, and what a format
 * cannot do; and the node's name in the errors of what is not refused.
 */
import { BlockError, toBlockError } from '../base/block-error.ts';
import { type GuestOffset, MAX_OFFSET } from '../base/units.ts';
import type { DriverInstance } from './driver.ts';
import type { Node } from './node.ts';

/** Errors: EROFS; kind closed. */
export const writableDriver = (node: Node, op: string): DriverInstance => {
  const { driver, path } = node;
  if (node.readOnly) {
    throw new BlockError({
      kind: 'read-only',
      message: 'the image is open read-only',
      op,
      path,
    });
  }
  return driver;
};

/** Where writes have to end, in bytes. */
export const writeLimit = (driver: DriverInstance): number =>
  driver.growsOnWrite === true ? MAX_OFFSET : driver.lengthBytes;

/** Errors: EINVAL for a range that does not lie between 0 and `limit`. */
export const checkRange = (
  node: Node,
  op: string,
  offset: number,
  lengthBytes: number,
  limit: number,
): void => {
  if (offset >= 0 && lengthBytes >= 0 && offset + lengthBytes <= limit) return;
  throw outOfRange(node, op, offset, lengthBytes, limit);
};

/** EINVAL. */
export const outOfRange = (
  node: Node,
  op: string,
  offset: number,
  lengthBytes: number,
  limit: number,
): BlockError => {
  const message = `${op} of ${lengthBytes} bytes reaches past the end (${limit} bytes)`;
  return new BlockError({ kind: 'bad-request', message, op, path: node.path, offset });
};

/** EOPNOTSUPP: the driver lacks the method. */
export const cannot = (node: Node, op: string): BlockError => {
  const message = `the format ${node.descriptor.name} cannot ${op}`;
  return new BlockError({ kind: 'unsupported', message, op, path: node.path });
};

/** An error of a driver, with the node and the place; what it says of those already stays. */
export const inContext = (
  node: Node,
  error: unknown,
  op: string,
  offset: GuestOffset,
): BlockError => toBlockError(error, { op, node: node.name, path: node.path, offset });
