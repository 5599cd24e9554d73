/**
 * Writing the variable part of the header cluster anew: extensions and the backing file's name (specification: "Header
 * extensions", "Backing file name").
 *
 * The new name is written and synced first, where the old header names nothing; then the front, which names it. Extensions
 * that are not known are kept. A cut between the two leaves the old link; the front is one write. Where the only room is
 * what the old header still uses, the name goes with the front, in that one write.
 */
import { BlockError } from '../../src/base/block-error.ts';
import { viewOf, writeU64BE } from '../../src/base/byte-order.ts';
import { alignUp } from '../../src/base/range.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { HeaderChanges } from '../../src/block/header-changes.ts';
import type { BackingLink } from '../../src/block/image-description.ts';
import type { Extension } from './header-extensions.ts';
import { EXTENSION, HEADER, MAX_BACKING_NAME_BYTES } from './layout.ts';

export interface HeaderClusterShape {
  readonly clusterBytes: number;
  /** Where extensions begin. */
  readonly headerBytes: number;
}

const HEAD_BYTES = 8;

/** Extensions with their end marker. */
export const encodeExtensions = (extensions: readonly Extension[]): Uint8Array => {
  const lengths = extensions.map(({ content }) => HEAD_BYTES + alignUp(content.length, 8));
  const bytes = new Uint8Array(lengths.reduce((sum, length) => sum + length, 0) + HEAD_BYTES);
  const view = viewOf(bytes);
  let at = 0;
  extensions.forEach(({ type, content }, i) => {
    view.setUint32(at, type);
    view.setUint32(at + 4, content.length);
    bytes.set(content, at + HEAD_BYTES);
    at += lengths[i] ?? 0;
  });
  return bytes;
};

/** The extensions of an image whose backing link is to be another: the format first, so that it lies in the first sector. */
export const withBackingFormat = (
  extensions: readonly Extension[],
  format: string | null,
): readonly Extension[] => {
  const others = extensions.filter((e) => e.type !== EXTENSION.backingFormat);
  if (format === null) return others;
  return [{ type: EXTENSION.backingFormat, content: new TextEncoder().encode(format) }, ...others];
};

/** Where the extensions that the header cluster has now end, their end marker included. */
const extensionsEnd = (view: DataView, headerBytes: number): number => {
  let at = headerBytes;
  while (at + HEAD_BYTES <= view.byteLength && view.getUint32(at) !== 0)
    at += HEAD_BYTES + alignUp(view.getUint32(at + 4), 8);
  return Math.min(at + HEAD_BYTES, view.byteLength);
};

/**
 * Writes extensions and backing link, durably. Nothing is owed before. Errors: EINVAL when they do not fit the header cluster; ENOSPC,
 * EIO, and the header is as it was, or owed.
 */
export const rewriteHeaderCluster = async (
  changes: HeaderChanges,
  shape: HeaderClusterShape,
  extensions: readonly Extension[],
  backing: BackingLink | null,
): Promise<void> => {
  const { clusterBytes, headerBytes } = shape;
  const { file } = changes;
  const cluster = new Uint8Array(clusterBytes);
  await file.readClipped(guestOffset(0), cluster);
  const from = cluster.slice();
  const view = viewOf(cluster);
  const encoded = encodeExtensions(extensions);
  const end = headerBytes + encoded.length;
  const name = new TextEncoder().encode(backing?.filename ?? '');
  const old = {
    start: view.getUint32(HEADER.backingOffset + 4),
    bytes: view.getUint32(HEADER.backingSize),
  };
  const isBeside = old.start === 0 || end + name.length <= old.start;
  const place = isBeside ? end : Math.max(end, old.start + old.bytes);
  const at = place + name.length <= clusterBytes ? place : end;
  if (name.length > MAX_BACKING_NAME_BYTES || at + name.length > clusterBytes) {
    const message = `a backing file name of ${name.length} bytes does not fit the header cluster of ${clusterBytes} bytes`;
    throw new BlockError({ kind: 'bad-request', message, path: file.path, op: 'change-backing' });
  }
  const isUnused =
    at >= extensionsEnd(view, headerBytes) &&
    (at >= old.start + old.bytes || at + name.length <= old.start);
  if (isUnused && name.length > 0) await changes.set(at, name);
  const front = isUnused ? at : at + name.length;
  cluster.set(encoded, headerBytes);
  // Up to the name, nothing of older extensions is left.
  if (at > end) cluster.fill(0, end, at);
  writeU64BE(view, HEADER.backingOffset, name.length === 0 ? 0 : at);
  view.setUint32(HEADER.backingSize, name.length);
  cluster.set(name, at);
  await changes.change(0, cluster.subarray(0, front), { from });
};
