/**
 * Bytes of the header that an engine owed which was killed (src/block/header-changes.ts): put back before the header is read, because
 * what the engine has answered meanwhile went by them.
 *
 * Another program may have used the image between the two, and found the new bytes. By a smaller size it lost nothing that is there
 * with the larger one. By another L1 table it has, as soon as it wrote: then both stay as they are, and the journal is not applied
 * (replay.ts finds it). So the old table is put back only where the new one has what was written to it, which the journal knows by its
 * SHA-256. That tells of every write that matters. A larger table names what the old one does: a program that changes no word of
 * it has written to clusters and tables that both name. One that a snapshot was applied by names nothing that is its own (refcounts
 * were raised and COPIED flags cleared before): a program that writes copies an L2 table first, and changes a word.
 */
import { createHash } from 'node:crypto';
import { readU64BE, viewOf } from '../../src/base/byte-order.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { OpenRequest } from '../../src/block/driver.ts';
import { type OwedHeader, takeUpOwed } from '../../src/block/header-changes.ts';
import type { Node } from '../../src/block/node.ts';
import { decodeOwedHeaders } from './journal-records.ts';
import { ENTRY_BYTES, HEADER, HEADER_V3_BYTES, MAX_L1_BYTES } from './layout.ts';

interface L1Place {
  readonly offset: number;
  readonly lengthBytes: number;
}

/** Of an image that is opened for writing. Errors: EIO, ENOSPC. */
export const takeUpOwedHeader = async ({
  journal,
  file,
}: Pick<OpenRequest, 'journal' | 'file'>): Promise<void> => {
  // A later one was owed when those before it were put back.
  const owed = (journal?.leftover ?? []).flatMap(decodeOwedHeaders).at(-1);
  if (owed === undefined) return;
  const header = new Uint8Array(HEADER_V3_BYTES);
  await file.readClipped(guestOffset(0), header);
  if (await isUnused(file, header, owed)) await takeUpOwed(file, owed);
};

/** SHA-256 (32 bytes) of an L1 table as it was written; see `OwedHeader.witness`. */
export const witnessOfL1 = (l1: Uint8Array): Uint8Array => createHash('sha256').update(l1).digest();

/** Whether the header names one L1 table before and after, or nobody has changed the one that the new bytes name. */
const isUnused = async (file: Node, header: Uint8Array, owed: OwedHeader): Promise<boolean> => {
  const before = l1Of(header, owed.at, owed.before);
  const after = l1Of(header, owed.at, owed.after);
  if (before.offset === after.offset && before.lengthBytes === after.lengthBytes) return true;
  if (after.lengthBytes > MAX_L1_BYTES) return false;
  const found = new Uint8Array(after.lengthBytes);
  await file.readClipped(guestOffset(after.offset), found);
  return Buffer.compare(witnessOfL1(found), owed.witness) === 0;
};

/** As a header has it in which some bytes are others. */
const l1Of = (header: Uint8Array, at: number, bytes: Uint8Array): L1Place => {
  const changed = header.slice();
  changed.set(bytes.subarray(0, Math.max(0, changed.length - at)), Math.min(at, changed.length));
  const view = viewOf(changed);
  return {
    offset: readU64BE(view, HEADER.l1Offset),
    lengthBytes: view.getUint32(HEADER.l1Size) * ENTRY_BYTES,
  };
};
