/**
 * Bytes of the header that an engine owed which was killed (src/block/header-changes.ts): put back before the header is read, because
 * what the engine has answered meanwhile went by them.
 *
 * Another program may have used the image between the two, and found the new bytes. By a smaller size it lost nothing that is there
 * with the larger one. By another L1 table it has, as soon as that names a table more: then both stay as they are, and the journal is
 * not applied (replay.ts finds it). So the old table is put back only where the new one still says the same; and where the image
 * is marked dirty: applying a snapshot does that before it changes the table, and another program that writes takes it away.
 */
import { readU64BE, viewOf } from '../../src/base/byte-order.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { OpenRequest } from '../../src/block/driver.ts';
import { type OwedHeader, takeUpOwed } from '../../src/block/header-changes.ts';
import type { Node } from '../../src/block/node.ts';
import { decodeOwedHeaders } from './journal-records.ts';
import { ENTRY_BYTES, HEADER, HEADER_V3_BYTES, INCOMPATIBLE, MAX_L1_BYTES } from './layout.ts';

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
  if (isMarkedDirty(header) || (await hasSameL1(file, header, owed))) await takeUpOwed(file, owed);
};

const isMarkedDirty = (header: Uint8Array): boolean => {
  const view = viewOf(header);
  if (view.getUint32(HEADER.version) < 3) return false;
  return (view.getUint32(HEADER.incompatible + 4) & INCOMPATIBLE.dirty) !== 0;
};

/** Whether the L1 table that the new bytes name begins with all of the old one, and has nothing behind it. */
const hasSameL1 = async (file: Node, header: Uint8Array, owed: OwedHeader): Promise<boolean> => {
  const before = l1Of(header, owed.at, owed.before);
  const after = l1Of(header, owed.at, owed.after);
  if (before.offset === after.offset && before.lengthBytes === after.lengthBytes) return true;
  if (before.lengthBytes > after.lengthBytes || after.lengthBytes > MAX_L1_BYTES) return false;
  const [old, now] = [new Uint8Array(before.lengthBytes), new Uint8Array(after.lengthBytes)];
  await file.readClipped(guestOffset(before.offset), old);
  await file.readClipped(guestOffset(after.offset), now);
  return now.every((byte, i) => byte === (old[i] ?? 0));
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
