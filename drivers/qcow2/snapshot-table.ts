/** The snapshot table (specification: "Snapshots"). */
import { invalidImage } from '../../src/base/block-error.ts';
import { readU64BE, viewOf } from '../../src/base/byte-order.ts';
import { alignUp } from '../../src/base/range.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { SnapshotDescription } from '../../src/block/driver.ts';
import type { Node } from '../../src/block/node.ts';
import type { Qcow2Header } from './header.ts';
import { MAX_SNAPSHOT_EXTRA_BYTES, MAX_SNAPSHOT_TABLE_BYTES, SECTOR_BYTES } from './layout.ts';

const FIXED_BYTES = 40;
/** An entry is never longer than this: fixed part, extra data, id and name of 65,535 bytes each. */
const MAX_ENTRY_BYTES = FIXED_BYTES + MAX_SNAPSHOT_EXTRA_BYTES + 2 * 65_535;
const PIECE_BYTES = 256 << 10;

export interface Snapshot {
  readonly description: SnapshotDescription;
  readonly l1Offset: number;
  readonly l1Entries: number;
}

export interface SnapshotTable {
  readonly snapshots: readonly Snapshot[];
  readonly lengthBytes: number;
}

/** Reads entry by entry, so that memory follows what is there. Errors: EIO naming the entry. */
export const readSnapshotTable = async (
  file: Node,
  header: Qcow2Header,
  path: string,
): Promise<SnapshotTable> => {
  const snapshots: Snapshot[] = [];
  let piece = new Uint8Array(0);
  let pieceStart = 0;
  let at = 0;
  for (let index = 0; index < header.snapshots; index++) {
    const context = { path, offset: header.snapshotsOffset + at };
    if (at > MAX_SNAPSHOT_TABLE_BYTES)
      throw invalidImage('the snapshot table is larger than 64 MiB', context);
    if (header.snapshotsOffset + at + FIXED_BYTES > file.lengthBytes) {
      throw invalidImage(
        `snapshot ${index} of ${header.snapshots} lies past the end of the file`,
        context,
      );
    }
    if (at + MAX_ENTRY_BYTES > pieceStart + piece.length) {
      pieceStart = at;
      piece = new Uint8Array(PIECE_BYTES);
      await file.readClipped(guestOffset(header.snapshotsOffset + at), piece);
    }
    const { snapshot, lengthBytes } = parseEntry(
      piece.subarray(at - pieceStart),
      header,
      index,
      context,
    );
    snapshots.push(snapshot);
    at += lengthBytes;
  }
  return { snapshots, lengthBytes: at };
};

const parseEntry = (
  bytes: Uint8Array,
  header: Qcow2Header,
  index: number,
  context: { path: string; offset: number },
): { snapshot: Snapshot; lengthBytes: number } => {
  const view = viewOf(bytes);
  const idBytes = view.getUint16(12);
  const nameBytes = view.getUint16(14);
  const extraBytes = view.getUint32(36);
  if (extraBytes > MAX_SNAPSHOT_EXTRA_BYTES) {
    throw invalidImage(
      `snapshot ${index} has ${extraBytes} bytes of extra data, more than 1024`,
      context,
    );
  }
  const number = (field: number, what: string): number => {
    const value = readU64BE(view, field);
    if (Number.isNaN(value)) throw invalidImage(`snapshot ${index}: ${what} is past 2^53`, context);
    return value;
  };
  const extra = FIXED_BYTES;
  const idAt = extra + extraBytes;
  const text = (from: number, length: number): string =>
    Buffer.from(bytes.subarray(from, from + length)).toString('utf8');
  const size = extraBytes >= 16 ? number(extra + 8, 'disk size') : header.virtualSizeBytes;
  const icount = extraBytes >= 24 ? readU64BE(view, extra + 16) : Number.NaN;
  const description: SnapshotDescription = {
    id: text(idAt, idBytes),
    name: text(idAt + idBytes, nameBytes),
    virtualSizeBytes: size - (size % SECTOR_BYTES),
    vmStateBytes: extraBytes >= 8 ? number(extra, 'VM state size') : view.getUint32(32),
    dateSeconds: view.getUint32(16),
    dateNanoseconds: view.getUint32(20),
    vmClockNanoseconds: number(24, 'VM clock'),
    icount: Number.isNaN(icount) ? null : icount,
  };
  const l1Offset = number(0, 'L1 table offset');
  const snapshot = { description, l1Offset, l1Entries: view.getUint32(8) };
  return { snapshot, lengthBytes: alignUp(idAt + idBytes + nameBytes, 8) };
};
