/**
 * Short I/O that is done in the turn of the event loop in which it is asked for: when all that it needs is in memory or in the host's
 * page cache, and nobody is in the way. An `await` for each step of a request costs several times what the I/O does.
 *
 * Each function says false when it would have to wait, or has met an error; then nothing that counts has been done, and the
 * usual way (`Node.read`, `Node.write`), which the caller goes next, meets the same again. Since nothing else runs
 * meanwhile, it needs no epoch: nobody can begin to wait for it.
 */
import { BlockError } from '../base/block-error.ts';
import { guestOffset } from '../base/units.ts';
import type { Mapping } from './driver.ts';
import type { Node } from './node.ts';

/** What takes no longer than the wake-ups of another thread. */
export const SHORT_BYTES = 128 << 10;

/** As `Node.readClipped`. False: the buffer holds anything. */
export const readAtOnce = (node: Node, offset: number, buffer: Uint8Array): boolean =>
  readLayer(node, offset, buffer, node.copyOnRead !== null);

/** As `Node.readForCopy`. */
export const readForCopyAtOnce = (node: Node, offset: number, buffer: Uint8Array): boolean =>
  readLayer(node, offset, buffer, false);

const readLayer = (node: Node, offset: number, buffer: Uint8Array, keeps: boolean): boolean => {
  // What is read there may have to be kept.
  if (!node.isOpen || keeps) return false;
  const { driver, statistics } = node;
  if (offset + buffer.length > driver.lengthBytes) driver.noticeGrowth?.();
  const inside = Math.max(0, Math.min(buffer.length, driver.lengthBytes - offset));
  if (inside < buffer.length) buffer.fill(0, inside);
  if (inside === 0) return true;
  const isRead =
    node.descriptor.role === 'protocol'
      ? driver.readAtOnce?.(guestOffset(offset), buffer.subarray(0, inside)) === true
      : readPieces(node, offset, buffer.subarray(0, inside));
  if (!isRead) return false;
  statistics.reads++;
  statistics.readBytes += inside;
  return true;
};

const readPieces = (node: Node, offset: number, buffer: Uint8Array): boolean => {
  for (let done = 0; done < buffer.length; ) {
    const at = offset + done;
    const m = mappingAtOnce(node, at, buffer.length - done);
    if (m === null) return false;
    const piece = buffer.subarray(done, done + m.lengthBytes);
    if (m.kind === 'opaque') return false;
    if (m.kind === 'data') {
      if (!readAtOnce(m.file, m.hostOffset, piece)) return false;
    } else if (m.kind === 'zero' || node.backing === null) piece.fill(0);
    else if (!readAtOnce(node.backing, at, piece)) return false;
    done += m.lengthBytes;
  }
  return true;
};

/** Null: a table has to be read first. The reading goes on; it and its failure are met by the request that needs it. */
const mappingAtOnce = (node: Node, offset: number, lengthBytes: number): Mapping | null => {
  const found = orNothing(() => node.driver.mapping(guestOffset(offset), lengthBytes));
  if (!(found instanceof Promise)) return found;
  found.catch(() => undefined);
  return null;
};

/** As `Node.write`, inside of the node's length alone. `cluster`: see `DriverInstance.writeAtOnce`. */
export const writeAtOnce = (
  node: Node,
  offset: number,
  buffer: Uint8Array,
  cluster: Uint8Array | null = null,
): boolean => {
  if (!node.isOpen || node.readOnly || node.interposers.length > 0) return false;
  const { driver, statistics } = node;
  if (driver.writeAtOnce === undefined) return false;
  if (driver.growsOnWrite !== true && offset + buffer.length > driver.lengthBytes) return false;
  // Before the write begins. A bit too much does no harm.
  node.dirtyBitmaps.mark(offset, buffer.length);
  node.flushMark.changeBegins();
  const isWritten = orNothing(() => driver.writeAtOnce?.(guestOffset(offset), buffer, cluster));
  node.flushMark.changeEnded();
  if (isWritten !== true) return false;
  statistics.writes++;
  statistics.writtenBytes += buffer.length;
  return true;
};

const orNothing = <T>(run: () => T): T | null => {
  try {
    return run();
  } catch (error) {
    // A host that refuses is met again; anything else is a fault of ours.
    const isOfHost = typeof (error as NodeJS.ErrnoException).errno === 'number';
    if (isOfHost || error instanceof BlockError) return null;
    throw error;
  }
};
