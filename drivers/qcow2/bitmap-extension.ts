/**
 * Making another bitmap directory the image's: the bitmaps extension and autoclear bit 0, in steps that a power cut may end
 * anywhere. What the directory names is on disk before.
 *
 * - An extension that is there gets its 24 bytes of content, in one write within a sector. Where they lie in two sectors the
 *   autoclear bit is cleared first and set last, so that nobody reads the half: a cut in between loses the bitmaps.
 * - A new one is the last: its content first, behind the end marker; then type and length in the marker's place; then the
 *   autoclear bit. A backing file's name that is in the way is moved before, by one write of the header's first sector.
 * - To have none, the autoclear bit is cleared first; then it is taken out of the header.
 */
import { BlockError } from '../../src/base/block-error.ts';
import { readU64BE, viewOf, writeU64BE } from '../../src/base/byte-order.ts';
import { alignUp } from '../../src/base/range.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { HeaderChanges } from '../../src/block/header-changes.ts';
import type { Node } from '../../src/block/node.ts';
import { type BitmapExtension, encodeExtension } from './bitmap-directory.ts';
import { readHeader } from './header.ts';
import { rewriteHeaderCluster } from './header-cluster.ts';
import { AUTOCLEAR, EXTENSION, HEADER, SECTOR_BYTES } from './layout.ts';

const HEAD_BYTES = 8;

/** The header cluster as it is on disk. */
interface HeaderCluster {
  readonly bytes: Uint8Array;
  readonly view: DataView;
  /** Of the bitmaps extension; null without one. */
  readonly extensionAt: number | null;
  /** Where the extensions end: of their end marker, which need not be there. */
  readonly end: number;
}

/** Durable when it returns. Not inside a checkpoint. Errors: EINVAL when the header cluster has no room; ENOSPC, EIO. */
export const publishBitmaps = async (
  changes: HeaderChanges,
  path: string,
  extension: BitmapExtension | null,
): Promise<void> => {
  await changes.settled();
  const cluster = await readCluster(changes.file, path);
  if (extension === null) await takeOut(changes, path, cluster);
  else if (cluster.extensionAt !== null) await replace(changes, cluster, extension);
  else await append(changes, path, cluster, extension);
};

const readCluster = async (file: Node, path: string): Promise<HeaderCluster> => {
  const { clusterBytes, headerBytes } = await readHeader(file, path);
  const bytes = new Uint8Array(clusterBytes);
  await file.readClipped(guestOffset(0), bytes);
  const view = viewOf(bytes);
  let extensionAt: number | null = null;
  let end = headerBytes;
  const limit = extensionLimit(view, clusterBytes);
  while (end + HEAD_BYTES <= limit && view.getUint32(end) !== EXTENSION.end) {
    if (view.getUint32(end) === EXTENSION.bitmaps) extensionAt ??= end;
    end += HEAD_BYTES + alignUp(view.getUint32(end + 4), 8);
  }
  return { bytes, view, extensionAt, end };
};

/** The backing file's name begins there, or the cluster ends. */
const extensionLimit = (view: DataView, clusterBytes: number): number => {
  const name = readU64BE(view, HEADER.backingOffset);
  return name > 0 && name < clusterBytes ? name : clusterBytes;
};

const takeOut = async (
  changes: HeaderChanges,
  path: string,
  cluster: HeaderCluster,
): Promise<void> => {
  await setAutoclear(changes, cluster, false);
  const { extensionAt, end, view } = cluster;
  if (extensionAt === null) return;
  const next = extensionAt + HEAD_BYTES + alignUp(view.getUint32(extensionAt + 4), 8);
  if (next === end) {
    await changes.set(extensionAt, new Uint8Array(HEAD_BYTES));
    return;
  }
  const { clusterBytes, headerBytes, extensions, backing } = await readHeader(changes.file, path);
  const others = extensions.filter((e) => e.type !== EXTENSION.bitmaps);
  await rewriteHeaderCluster(changes, { clusterBytes, headerBytes }, others, backing);
};

const replace = async (
  changes: HeaderChanges,
  cluster: HeaderCluster,
  extension: BitmapExtension,
): Promise<void> => {
  const content = encodeExtension(extension);
  const at = (cluster.extensionAt ?? 0) + HEAD_BYTES;
  const isTorn = at % SECTOR_BYTES > SECTOR_BYTES - content.length;
  if (isTorn) await setAutoclear(changes, cluster, false);
  await changes.set(at, content);
  await setAutoclear(changes, cluster, true);
};

const append = async (
  changes: HeaderChanges,
  path: string,
  cluster: HeaderCluster,
  extension: BitmapExtension,
): Promise<void> => {
  const content = encodeExtension(extension);
  const { end, view, bytes } = cluster;
  const needed = end + HEAD_BYTES + content.length + HEAD_BYTES;
  // Set without an extension, it stands for nothing: it must not make a half one valid.
  await setAutoclear(changes, cluster, false);
  if (needed > extensionLimit(view, bytes.length)) await moveName(changes, path, cluster, needed);
  // With an end marker behind it.
  const body = new Uint8Array(content.length + HEAD_BYTES);
  body.set(content);
  await changes.set(end + HEAD_BYTES, body);
  const head = new Uint8Array(HEAD_BYTES);
  viewOf(head).setUint32(0, EXTENSION.bitmaps);
  viewOf(head).setUint32(4, content.length);
  await changes.set(end, head);
  await setAutoclear(changes, cluster, true);
};

/** The backing file's name goes to `from`, or behind where it is. */
const moveName = async (
  changes: HeaderChanges,
  path: string,
  { view, bytes }: HeaderCluster,
  from: number,
): Promise<void> => {
  const offset = readU64BE(view, HEADER.backingOffset);
  const length = view.getUint32(HEADER.backingSize);
  const isName = offset > 0 && offset < bytes.length;
  const to = Math.max(from, offset + length);
  if (!isName || to + length > bytes.length) {
    const message = `its header cluster of ${bytes.length} bytes has no room for bitmaps`;
    throw new BlockError({ kind: 'bad-request', message, path, op: 'bitmap' });
  }
  await changes.set(to, bytes.subarray(offset, offset + length));
  const field = new Uint8Array(8);
  writeU64BE(viewOf(field), 0, to);
  await changes.set(HEADER.backingOffset, field);
};

/** Bit 0 alone; durable when it returns. */
const setAutoclear = async (
  changes: HeaderChanges,
  { view }: HeaderCluster,
  isSet: boolean,
): Promise<void> => {
  const at = HEADER.autoclear + 4;
  const old = view.getUint32(at);
  const now = (isSet ? old | AUTOCLEAR.bitmaps : old & ~AUTOCLEAR.bitmaps) >>> 0;
  if (now === old) return;
  view.setUint32(at, now);
  const word = new Uint8Array(4);
  viewOf(word).setUint32(0, now);
  await changes.set(at, word);
};
