/** Bodies of replies: attributes, entries, directory listings, statistics (fuse.h). */
import { writeU64LE } from '../../src/base/byte-order.ts';
import { type FileAttributes, ROOT_NODE_ID } from '../directory.ts';
import {
  ATTR_OUT_BYTES,
  DIRENT_BYTES,
  DT_DIR,
  DT_REG,
  ENTRY_OUT_BYTES,
  S_IFDIR,
  S_IFREG,
  STATFS_OUT_BYTES,
} from './abi.ts';

/**
 * How long the kernel may believe a name or attributes, in seconds. A name that goes is also taken back by a
 * notification; sizes change only through the kernel itself.
 */
export const VALID_SECONDS = 1;
const BLOCK_BYTES = 4096;
const MS_PER_SECOND = 1000;
const NANOSECONDS_PER_MS = 1e6;

const writeAttributes = (view: DataView, at: number, nodeId: number, a: FileAttributes): void => {
  const type = nodeId === ROOT_NODE_ID ? S_IFDIR : S_IFREG;
  writeU64LE(view, at, nodeId);
  writeU64LE(view, at + 8, a.sizeBytes);
  writeU64LE(view, at + 16, a.blocks);
  writeTime(view, at + 24, at + 48, a.accessTimeMs);
  writeTime(view, at + 32, at + 52, a.modifyTimeMs);
  writeTime(view, at + 40, at + 56, a.changeTimeMs);
  view.setUint32(at + 60, type | a.mode, true);
  view.setUint32(at + 64, nodeId === ROOT_NODE_ID ? 2 : 1, true);
  view.setUint32(at + 68, a.uid, true);
  view.setUint32(at + 72, a.gid, true);
  view.setUint32(at + 76, 0, true);
  view.setUint32(at + 80, BLOCK_BYTES, true);
  view.setUint32(at + 84, 0, true);
};

const writeTime = (
  view: DataView,
  secondsAt: number,
  nanosecondsAt: number,
  timeMs: number,
): void => {
  const seconds = Math.floor(timeMs / MS_PER_SECOND);
  view.setBigInt64(secondsAt, BigInt(seconds), true);
  const nanoseconds = Math.floor((timeMs - seconds * MS_PER_SECOND) * NANOSECONDS_PER_MS);
  view.setUint32(nanosecondsAt, nanoseconds, true);
};

/** Milliseconds, fractions kept, from two fields of a request. */
export const timeFrom = (seconds: number, nanoseconds: number): number =>
  seconds * MS_PER_SECOND + nanoseconds / NANOSECONDS_PER_MS;

/** `fuse_attr_out`. Returns its length. */
export const writeAttrOut = (
  view: DataView,
  at: number,
  nodeId: number,
  a: FileAttributes,
): number => {
  writeU64LE(view, at, VALID_SECONDS);
  writeU64LE(view, at + 8, 0);
  writeAttributes(view, at + 16, nodeId, a);
  return ATTR_OUT_BYTES;
};

/** `fuse_entry_out`. Returns its length. */
export const writeEntryOut = (
  view: DataView,
  at: number,
  nodeId: number,
  a: FileAttributes,
): number => {
  writeU64LE(view, at, nodeId);
  writeU64LE(view, at + 8, 0);
  writeU64LE(view, at + 16, VALID_SECONDS);
  writeU64LE(view, at + 24, VALID_SECONDS);
  writeU64LE(view, at + 32, 0);
  writeAttributes(view, at + 40, nodeId, a);
  return ENTRY_OUT_BYTES;
};

/** What `readdir` shows of one name. */
export interface ListedName {
  readonly nodeId: number;
  readonly name: string;
  readonly isDirectory: boolean;
  /** Where a reading that stopped here goes on. */
  readonly cookie: number;
}

const alignedNameEnd = (nameBytes: number): number => Math.ceil((DIRENT_BYTES + nameBytes) / 8) * 8;

/** Bytes that `writeDirent` takes. */
export const direntBytes = (name: string): number => alignedNameEnd(Buffer.byteLength(name));

/** `fuse_dirent`. Returns its length, padding included. */
export const writeDirent = (
  bytes: Uint8Array,
  view: DataView,
  at: number,
  listed: ListedName,
): number => {
  const name = Buffer.from(listed.name);
  const length = alignedNameEnd(name.length);
  bytes.fill(0, at, at + length);
  writeU64LE(view, at, listed.nodeId);
  writeU64LE(view, at + 8, listed.cookie);
  view.setUint32(at + 16, name.length, true);
  view.setUint32(at + 20, listed.isDirectory ? DT_DIR : DT_REG, true);
  bytes.set(name, at + DIRENT_BYTES);
  return length;
};

/** `fuse_statfs_out`; all sizes in bytes. Returns its length. */
export const writeStatfs = (
  view: DataView,
  at: number,
  space: { totalBytes: number; freeBytes: number; availableBytes: number },
): number => {
  writeU64LE(view, at, Math.floor(space.totalBytes / BLOCK_BYTES));
  writeU64LE(view, at + 8, Math.floor(space.freeBytes / BLOCK_BYTES));
  writeU64LE(view, at + 16, Math.floor(space.availableBytes / BLOCK_BYTES));
  writeU64LE(view, at + 24, 0);
  writeU64LE(view, at + 32, 0);
  // Loop devices take their discard granularity from it.
  view.setUint32(at + 40, BLOCK_BYTES, true);
  view.setUint32(at + 44, 255, true);
  view.setUint32(at + 48, BLOCK_BYTES, true);
  for (let spare = 52; spare < STATFS_OUT_BYTES; spare += 4) view.setUint32(at + spare, 0, true);
  return STATFS_OUT_BYTES;
};
