/**
 * The snapshot table (specification: "Snapshots"): reading it, and making a new one of an old one.
 *
 * Entries are carried over byte for byte: extra data that is not known here is kept. One that does not say how large its
 * disk is, as only old programs leave it, is told that it is as large as the image, which is what it has meant so far.
 */
import { assert } from '../../src/base/assert.ts';
import { invalidImage } from '../../src/base/block-error.ts';
import { readU64BE, viewOf, writeU64BE } from '../../src/base/byte-order.ts';
import { alignUp } from '../../src/base/range.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { SnapshotDescription } from '../../src/block/image-description.ts';
import type { Node } from '../../src/block/node.ts';
import type { Qcow2Header } from './header.ts';
import { MAX_SNAPSHOT_EXTRA_BYTES, MAX_SNAPSHOT_TABLE_BYTES, SECTOR_BYTES } from './layout.ts';

const FIXED_BYTES = 40;
/** Extra data as QEMU writes it: size of the VM's state, size of the disk, instruction count. */
const EXTRA_BYTES = 24;
const EXTRA = { vmStateBytes: 0, diskBytes: 8, icount: 16 } as const;
const FIELD = {
  l1Offset: 0,
  l1Entries: 8,
  idBytes: 12,
  nameBytes: 14,
  dateSeconds: 16,
  dateNanoseconds: 20,
  vmClock: 24,
  vmStateBytes: 32,
  extraBytes: 36,
} as const;
/** An entry is never longer than this: fixed part, extra data, id and name of 65,535 bytes each. */
const MAX_ENTRY_BYTES = FIXED_BYTES + MAX_SNAPSHOT_EXTRA_BYTES + 2 * 65_535;
const PIECE_BYTES = 256 << 10;

export interface Snapshot {
  readonly description: SnapshotDescription;
  readonly l1Offset: number;
  readonly l1Entries: number;
  /** Where its entry lies in the table, and how long it is. */
  readonly at: number;
  readonly lengthBytes: number;
}

export interface SnapshotTable {
  readonly snapshots: readonly Snapshot[];
  readonly lengthBytes: number;
}

/** Where a snapshot table is. `virtualSizeBytes`: of snapshots that do not say theirs. */
export type SnapshotTablePlace = Pick<
  Qcow2Header,
  'snapshots' | 'snapshotsOffset' | 'virtualSizeBytes'
>;

/** Reads entry by entry, so that memory follows what is there. Errors: EIO naming the entry. */
export const readSnapshotTable = async (
  file: Node,
  header: SnapshotTablePlace,
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
    const parsed = parseEntry(piece.subarray(at - pieceStart), header, index, context);
    snapshots.push({ ...parsed, at });
    at += parsed.lengthBytes;
  }
  return { snapshots, lengthBytes: at };
};

const parseEntry = (
  bytes: Uint8Array,
  header: SnapshotTablePlace,
  index: number,
  context: { path: string; offset: number },
): Omit<Snapshot, 'at'> => {
  const view = viewOf(bytes);
  const idBytes = view.getUint16(FIELD.idBytes);
  const nameBytes = view.getUint16(FIELD.nameBytes);
  const extraBytes = view.getUint32(FIELD.extraBytes);
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
  const size =
    extraBytes >= 16 ? number(extra + EXTRA.diskBytes, 'disk size') : header.virtualSizeBytes;
  const icount = extraBytes >= 24 ? readU64BE(view, extra + EXTRA.icount) : Number.NaN;
  const description: SnapshotDescription = {
    id: text(idAt, idBytes),
    name: text(idAt + idBytes, nameBytes),
    virtualSizeBytes: size - (size % SECTOR_BYTES),
    vmStateBytes:
      extraBytes >= 8 ? number(extra, 'VM state size') : view.getUint32(FIELD.vmStateBytes),
    dateSeconds: view.getUint32(FIELD.dateSeconds),
    dateNanoseconds: view.getUint32(FIELD.dateNanoseconds),
    vmClockNanoseconds: number(FIELD.vmClock, 'VM clock'),
    icount: Number.isNaN(icount) ? null : icount,
  };
  return {
    description,
    l1Offset: number(FIELD.l1Offset, 'L1 table offset'),
    l1Entries: view.getUint32(FIELD.l1Entries),
    lengthBytes: alignUp(idAt + idBytes + nameBytes, 8),
  };
};

/** What a new entry says; the VM's state, its clock and the instruction count are 0: no VM is saved with it. */
export interface NewSnapshot {
  readonly id: string;
  readonly name: string;
  readonly l1Offset: number;
  readonly l1Entries: number;
  readonly virtualSizeBytes: number;
  readonly dateSeconds: number;
  readonly dateNanoseconds: number;
}

export const encodeSnapshot = (snapshot: NewSnapshot): Uint8Array => {
  const id = Buffer.from(snapshot.id);
  const name = Buffer.from(snapshot.name);
  const idAt = FIXED_BYTES + EXTRA_BYTES;
  const bytes = new Uint8Array(alignUp(idAt + id.length + name.length, 8));
  const view = viewOf(bytes);
  writeU64BE(view, FIELD.l1Offset, snapshot.l1Offset);
  view.setUint32(FIELD.l1Entries, snapshot.l1Entries);
  view.setUint16(FIELD.idBytes, id.length);
  view.setUint16(FIELD.nameBytes, name.length);
  view.setUint32(FIELD.dateSeconds, snapshot.dateSeconds);
  view.setUint32(FIELD.dateNanoseconds, snapshot.dateNanoseconds);
  view.setUint32(FIELD.extraBytes, EXTRA_BYTES);
  writeU64BE(view, FIXED_BYTES + EXTRA.diskBytes, snapshot.virtualSizeBytes);
  bytes.set(id, idAt);
  bytes.set(name, idAt + id.length);
  return bytes;
};

/** The entries of some snapshots of a table, one after the other, as they go into a new one. `old`: the table's bytes. */
export const carriedEntries = (old: Uint8Array, snapshots: readonly Snapshot[]): Uint8Array => {
  const entries = snapshots.map((snapshot) => {
    assert(snapshot.at + snapshot.lengthBytes <= old.length, 'an entry lies inside its table');
    const entry = old.subarray(snapshot.at, snapshot.at + snapshot.lengthBytes);
    const extraBytes = viewOf(entry).getUint32(FIELD.extraBytes);
    return extraBytes < EXTRA.icount ? withExtraData(entry, snapshot.description) : entry;
  });
  return Buffer.concat(entries);
};

const withExtraData = (entry: Uint8Array, description: SnapshotDescription): Uint8Array => {
  const view = viewOf(entry);
  const idAt = FIXED_BYTES + view.getUint32(FIELD.extraBytes);
  const texts = view.getUint16(FIELD.idBytes) + view.getUint16(FIELD.nameBytes);
  const bytes = new Uint8Array(alignUp(FIXED_BYTES + EXTRA_BYTES + texts, 8));
  bytes.set(entry.subarray(0, FIXED_BYTES));
  bytes.set(entry.subarray(idAt, idAt + texts), FIXED_BYTES + EXTRA_BYTES);
  const out = viewOf(bytes);
  out.setUint32(FIELD.extraBytes, EXTRA_BYTES);
  writeU64BE(out, FIXED_BYTES + EXTRA.vmStateBytes, description.vmStateBytes);
  writeU64BE(out, FIXED_BYTES + EXTRA.diskBytes, description.virtualSizeBytes);
  // All ones: not recorded.
  bytes.fill(0xff, FIXED_BYTES + EXTRA.icount, FIXED_BYTES + EXTRA.icount + 8);
  return bytes;
};

/** As QEMU gives them: one more than the largest that is a number. */
export const nextSnapshotId = (snapshots: readonly Snapshot[]): string => {
  const numbers = snapshots
    .map(({ description }) => Number.parseInt(description.id, 10))
    .filter((number) => Number.isSafeInteger(number));
  return String(numbers.reduce((a, b) => Math.max(a, b), 0) + 1);
};
