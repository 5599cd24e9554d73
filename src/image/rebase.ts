/**
 * Putting an image on another backing file: `vdiskfs rebase`.
 *
 * Safe: what the guest sees stays. Where the image has nothing itself, and the old chain shows something else than the
 * new one, the old content is written into the image; that is durable before the header names the new file. Unsafe:
 * only the header changes.
 */
import { open } from 'node:fs/promises';
import { BlockError } from '../base/block-error.ts';
import { isAllZero } from '../base/range.ts';
import { guestOffset } from '../base/units.ts';
import { identify } from '../block/file-identity.ts';
import type { BackingLink } from '../block/image-description.ts';
import type { Node } from '../block/node.ts';
import { isUrl } from '../block/remote-url.ts';
import { chainOf } from './chain.ts';
import { type OfflineContext, openBackingOf, openImage, refusePassword } from './open.ts';

export interface RebaseRequest {
  readonly path: string;
  readonly format: string | null;
  /** Null: the image stands alone afterwards. */
  readonly backing: BackingLink | null;
  /** Only the header is changed; the new file need not exist. */
  readonly unsafe: boolean;
  readonly progress: (doneBytes: number, totalBytes: number) => void;
  readonly signal: AbortSignal;
}

const PIECE_BYTES = 1 << 20;

/** Errors: EOPNOTSUPP for a format without backing files; EINVAL for a chain that would loop; those of the images. */
export const rebaseImage = async (
  request: RebaseRequest,
  context: OfflineContext,
): Promise<void> => {
  const { path, backing, unsafe } = request;
  refusePassword(backing, path);
  const options = { writable: true, withoutBacking: unsafe, withoutKey: unsafe };
  await using image = await openImage(path, request.format, context, options);
  const { root } = image;
  if (root.descriptor.capabilities.backing !== true) {
    const message = `the format ${root.descriptor.name} has no backing files`;
    throw new BlockError({ kind: 'unsupported', message, path, op: 'rebase' });
  }
  if (unsafe) {
    await root.changeBacking(backing);
    return;
  }
  await using opened = backing === null ? null : await openBackingOf(path, backing, context);
  const below = opened?.root ?? null;
  if (below !== null) await refuseLoop(root, below);
  const old = root.backing;
  // What is written is whole clusters, so that nothing of the new chain gets into them; and what reads as zeros now is
  // known to need saying where the new chain does not.
  root.backing = below;
  try {
    await keepContent(request, root, old, below);
    await root.flush();
  } finally {
    root.backing = old;
  }
  for (const node of chainOf(below)) await syncFile(node.path);
  await root.changeBacking(backing);
};

const refuseLoop = async (root: Node, below: Node): Promise<void> => {
  const own = await Promise.all([root, ...root.dataFiles].map((node) => identify(node.path)));
  for (const node of chainOf(below)) {
    const other = await identify(node.path);
    if (!own.some((o) => other.device === o.device && other.inode === o.inode)) continue;
    const message = `would be in its own backing chain (as '${node.path}')`;
    throw new BlockError({ kind: 'bad-request', message, path: root.path, op: 'rebase' });
  }
};

const keepContent = async (
  request: RebaseRequest,
  root: Node,
  oldChain: Node | null,
  below: Node | null,
): Promise<void> => {
  const { signal, progress } = request;
  const pieceBytes = Math.max(PIECE_BYTES, root.driver.clusterBytes);
  const before = Buffer.alloc(pieceBytes);
  const after = Buffer.alloc(pieceBytes);
  for (let offset = 0; offset < root.lengthBytes; ) {
    signal.throwIfAborted();
    progress(offset, root.lengthBytes);
    const m = await root.mapping(guestOffset(offset), root.lengthBytes - offset);
    if (m.kind !== 'unallocated') {
      offset += m.lengthBytes;
      continue;
    }
    const lengthBytes = Math.min(m.lengthBytes, pieceBytes - (offset % pieceBytes));
    const [was, is] = [before.subarray(0, lengthBytes), after.subarray(0, lengthBytes)];
    await Promise.all([readChain(oldChain, offset, was), readChain(below, offset, is)]);
    if (!was.equals(is)) await keepDifference(root, offset, was, is);
    offset += lengthBytes;
  }
  progress(root.lengthBytes, root.lengthBytes);
};

const readChain = async (node: Node | null, offset: number, buffer: Buffer): Promise<void> => {
  if (node === null) buffer.fill(0);
  else await node.readClipped(guestOffset(offset), buffer);
};

/** Writes the clusters that differ. */
const keepDifference = async (
  root: Node,
  offset: number,
  was: Buffer,
  is: Buffer,
): Promise<void> => {
  const { clusterBytes } = root.driver;
  for (let at = 0; at < was.length; ) {
    const end = Math.min(was.length, at + clusterBytes - ((offset + at) % clusterBytes));
    const part = was.subarray(at, end);
    const target = guestOffset(offset + at);
    if (!part.equals(is.subarray(at, end))) {
      if (isAllZero(part)) await root.writeZeroes(target, part.length, { unmap: true });
      else await root.write(target, part);
    }
    at = end;
  }
};

// The image names it from now on: it survives a power cut first.
const syncFile = async (path: string): Promise<void> => {
  if (isUrl(path)) return;
  const file = await open(path, 'r');
  try {
    await file.datasync();
  } finally {
    await file.close();
  }
};
