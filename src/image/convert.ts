/**
 * Copying what one or several images show, one after the other, into a new or existing image: `vdiskfs convert`.
 *
 * Holes stay holes: what the sources say reads as zeros is not read, and stretches of zeros in what is read are not
 * written. A new target that could not be finished is removed.
 */
import { unlink } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { BlockError, toBlockError } from '../base/block-error.ts';
import { alignDown, isAllZero } from '../base/range.ts';
import { type GuestOffset, guestOffset } from '../base/units.ts';
import type { TrackedBitmap } from '../block/dirty-tracking.ts';
import { identify } from '../block/file-identity.ts';
import { readFileName } from '../block/file-name.ts';
import type { BackingLink } from '../block/image-description.ts';
import type { Node } from '../block/node.ts';
import { bitmapsToCopy, copyBitmaps } from './bitmap.ts';
import { chainOf } from './chain.ts';
import { type CopyRun, copyRuns } from './copy-runs.ts';
import { createImage } from './create.ts';
import { type OfflineContext, type OpenedImage, openImage, openImages } from './open.ts';
import { type LostRanges, readSalvaging } from './salvage.ts';

export interface ConvertRequest {
  readonly sources: readonly string[];
  /** Of every source; null probes. */
  readonly sourceFormat: string | null;
  /** The snapshot of the one source that is copied, as `snapshotToShow` reads it; null for what the sources show. */
  readonly snapshot: string | null;
  readonly target: string;
  readonly targetFormat: string;
  /** Checked by `checkOptions`. */
  readonly options: ReadonlyMap<string, string>;
  readonly backing: BackingLink | null;
  /** The target is there, and is written over. */
  readonly existing: boolean;
  /** An existing target shows nothing but zeros: they are not written. */
  readonly targetIsZero: boolean;
  readonly compress: boolean;
  /** Pieces in flight, 1 to 16. */
  readonly parallel: number;
  /** Writes need not come in order. */
  readonly outOfOrder: boolean;
  /** Stretches of zeros of this many bytes and more are not written; 0: all is written. */
  readonly sparseBytes: number;
  /** Whether the dirty bitmaps of the source come along; those that were not saved are refused or left behind. */
  readonly bitmaps: 'leave' | 'copy' | 'copy-sound';
  /** Takes what of the sources cannot be read, which is zeros in the target; null: an error ends the copy. */
  readonly salvage: LostRanges | null;
  readonly progress: (doneBytes: number, totalBytes: number) => void;
  /** Resolves when so many bytes may be read. */
  readonly pace: (lengthBytes: number) => Promise<void>;
  /** Aborted: the copy ends with its reason, and a new target is removed. */
  readonly signal: AbortSignal;
}

const PIECE_BYTES = 2 << 20;
/** How far what could not be told of one place is taken to hold, at least. */
const SALVAGE_BYTES = 4096;

/** Errors: EINVAL for a target that is a source or too small; those of the images. Returns the bytes the target shows. */
export const convertImages = async (
  request: ConvertRequest,
  context: OfflineContext,
): Promise<number> => {
  const { snapshot } = request;
  await using opened = await openImages(request.sources, request.sourceFormat, context, {
    snapshot,
  });
  const sources: Source[] = [];
  let totalBytes = 0;
  for (const root of opened.roots) {
    sources.push({ root, startByte: totalBytes });
    totalBytes += root.lengthBytes;
  }
  await refuseOwnSource(request.target, sources);
  // Before anything is written over: packed clusters are not encrypted.
  if (request.compress && request.options.has('encrypt.format')) {
    const message = 'cannot be both encrypted and packed';
    throw new BlockError({ kind: 'bad-request', message, path: request.target, op: 'convert' });
  }
  const bitmaps = await sourceBitmaps(request, sources);
  let isOurs = false;
  try {
    if (!request.existing) {
      const { target, targetFormat, options, backing } = request;
      const plan = { path: target, format: targetFormat, virtualSizeBytes: totalBytes, options };
      await createImage({ ...plan, backing, withoutOpeningBacking: false }, context);
      isOurs = true;
    }
    await using target = await openTarget(request, context);
    for (const { path } of target.root.dataFiles) await refuseOwnSource(path, sources);
    if (target.root.lengthBytes < totalBytes) {
      const message = `shows ${target.root.lengthBytes} bytes, the sources ${totalBytes}`;
      throw new BlockError({ kind: 'bad-request', message, path: request.target, op: 'convert' });
    }
    await copyAll(request, sources, target.root, totalBytes);
    await target.root.flush();
    if (bitmaps.length > 0) await copyBitmaps(target.root, bitmaps);
    return target.root.lengthBytes;
  } catch (error) {
    if (isOurs) await removeTarget(request, context);
    throw error;
  }
};

/** The new image, and the data file that was made for it. */
const removeTarget = async (request: ConvertRequest, context: OfflineContext): Promise<void> => {
  const { target, targetFormat, options } = request;
  const plan = context.registry.format(targetFormat).createDataFile?.(options) ?? null;
  await unlink(target).catch(() => undefined);
  // Only one that was not there, or had no bytes, is written without being asked for.
  if (plan?.isEmpty !== true) return;
  const { name } = readFileName(plan.link.filename, target);
  await unlink(resolve(dirname(target), name)).catch(() => undefined);
};

interface Source {
  readonly root: Node;
  /** Where it begins in the target. */
  readonly startByte: number;
}

const sourceBitmaps = async (
  { bitmaps, target }: ConvertRequest,
  sources: readonly Source[],
): Promise<readonly TrackedBitmap[]> => {
  if (bitmaps === 'leave') return [];
  const [source, ...others] = sources;
  if (source === undefined || others.length > 0) {
    const message = 'gets dirty bitmaps from one source alone';
    throw new BlockError({ kind: 'bad-request', message, path: target, op: 'convert' });
  }
  return bitmapsToCopy(source.root, bitmaps === 'copy-sound' ? 'skip' : 'refuse');
};

const openTarget = (request: ConvertRequest, context: OfflineContext): Promise<OpenedImage> =>
  openImage(request.target, request.targetFormat, context, { writable: true });

const refuseOwnSource = async (target: string, sources: readonly Source[]): Promise<void> => {
  const own = await identify(target).catch((error: unknown) => {
    if (toBlockError(error).errno === 'ENOENT') return null;
    throw error;
  });
  if (own === null) return;
  for (const { root } of sources) {
    for (const node of chainOf(root)) {
      const other = await identify(node.path);
      if (other.device !== own.device || other.inode !== own.inode) continue;
      const message = `would be written over while it is read (as '${node.path}')`;
      throw new BlockError({ kind: 'bad-request', message, path: resolve(target), op: 'convert' });
    }
  }
};

const copyAll = async (
  request: ConvertRequest,
  sources: readonly Source[],
  target: Node,
  totalBytes: number,
): Promise<void> => {
  const { compress, signal, sparseBytes, salvage } = request;
  if (compress && target.descriptor.capabilities.compressedWrite !== true) {
    const message = `the format ${target.descriptor.name} has no compressed clusters`;
    throw new BlockError({ kind: 'bad-request', message, path: request.target, op: 'convert' });
  }
  const pieceBytes = compress ? target.driver.clusterBytes : PIECE_BYTES;
  const sourceOf = (offset: number): Source => {
    const found = sources.findLast((s) => s.startByte <= offset);
    if (found === undefined) throw new RangeError('an offset below the first source');
    return found;
  };
  let doneBytes = 0;
  request.progress(0, totalBytes);
  const advance = (bytes: number): void => {
    doneBytes += bytes;
    request.progress(doneBytes, totalBytes);
  };
  // A new image reads as zeros wherever nothing was written, but where its backing or a data file shows through.
  const zerosNeedWriting =
    !request.targetIsZero &&
    (request.existing || target.backing !== null || target.dataFiles.length > 0);
  const zero = async (at: GuestOffset, lengthBytes: number): Promise<void> => {
    if (sparseBytes === 0) await target.write(at, new Uint8Array(lengthBytes));
    else if (zerosNeedWriting) await target.writeZeroes(at, lengthBytes, { unmap: true });
  };
  const readSources = async (at: number, buffer: Uint8Array): Promise<void> => {
    for (let done = 0; done < buffer.length; ) {
      const { root, startByte } = sourceOf(at + done);
      const inSource = at + done - startByte;
      const length = Math.min(buffer.length - done, root.lengthBytes - inSource);
      await root.read(guestOffset(inSource), buffer.subarray(done, done + length));
      done += length;
    }
  };
  const read = async (at: GuestOffset, buffer: Uint8Array): Promise<void> => {
    await request.pace(buffer.length);
    signal.throwIfAborted();
    if (salvage === null) await readSources(at, buffer);
    else await readSalvaging(readSources, at, buffer, salvage);
  };
  const write = (at: GuestOffset, bytes: Uint8Array): Promise<void> =>
    compress
      ? writePacked(target, at, bytes, zero)
      : writeSparse(target, at, bytes, sparseBytes, zero);
  await copyRuns({
    runs: runsOf({
      sources,
      totalBytes,
      aboveBacking: request.backing !== null,
      pieceBytes,
      wholePieces: compress,
      salvages: salvage !== null,
      skipped: advance,
    }),
    parallel: request.parallel,
    inOrder: !request.outOfOrder && target.driver.clusterBytes > 1 && !compress,
    read,
    write,
    zero,
    done: advance,
  });
};

interface RunPlan {
  readonly sources: readonly Source[];
  readonly totalBytes: number;
  /** What the top of a source does not have itself is left out: the target's backing has it. */
  readonly aboveBacking: boolean;
  /** Longest piece of data. */
  readonly pieceBytes: number;
  /** Data comes in whole pieces, aligned: what is packed is a cluster. */
  readonly wholePieces: boolean;
  /** What nothing is known of is data, which is then read as far as it can be. */
  readonly salvages: boolean;
  readonly skipped: (lengthBytes: number) => void;
}

async function* runsOf(plan: RunPlan): AsyncGenerator<CopyRun> {
  const { sources, totalBytes, pieceBytes, wholePieces } = plan;
  for (let offset = 0; offset < totalBytes; ) {
    const source = sources.findLast((s) => s.startByte <= offset && s.root.lengthBytes > 0);
    if (source === undefined) return;
    const inSource = offset - source.startByte;
    const found = await runKind(source.root, inSource, plan.aboveBacking).catch(
      (error: unknown) => {
        if (!plan.salvages || !(error instanceof BlockError)) throw error;
        return unknownRun(source.root, inSource);
      },
    );
    const pieceEnd = Math.min(totalBytes, alignDown(offset, pieceBytes) + pieceBytes);
    let end = offset + found.lengthBytes;
    let { kind } = found;
    if (kind !== 'data' && wholePieces && end < totalBytes) {
      end = alignDown(end, pieceBytes);
      if (end <= offset) kind = 'data';
    }
    if (kind === 'data') end = wholePieces ? pieceEnd : Math.min(end, pieceEnd);
    if (kind === 'skip') plan.skipped(end - offset);
    else yield { offset, lengthBytes: end - offset, kind };
    offset = end;
  }
}

/** To the end of its cluster. */
const unknownRun = (root: Node, offset: number): { kind: 'data'; lengthBytes: number } => {
  const unit = Math.max(root.driver.clusterBytes, SALVAGE_BYTES);
  const end = Math.min(root.lengthBytes, alignDown(offset, unit) + unit);
  return { kind: 'data', lengthBytes: end - offset };
};

const runKind = async (
  root: Node,
  offset: number,
  aboveBacking: boolean,
): Promise<{ readonly kind: 'data' | 'zero' | 'skip'; readonly lengthBytes: number }> => {
  const lengthBytes = root.lengthBytes - offset;
  if (aboveBacking && root.backing !== null) {
    const m = await root.mapping(guestOffset(offset), lengthBytes);
    if (m.kind === 'unallocated' && offset < root.backing.lengthBytes) {
      const inside = Math.min(m.lengthBytes, root.backing.lengthBytes - offset);
      return { kind: 'skip', lengthBytes: inside };
    }
  }
  const status = await root.blockStatus(guestOffset(offset), lengthBytes);
  return { kind: status.zero ? 'zero' : 'data', lengthBytes: status.lengthBytes };
};

type Zero = (at: GuestOffset, lengthBytes: number) => Promise<void>;

const writePacked = async (
  target: Node,
  at: GuestOffset,
  bytes: Uint8Array,
  zero: Zero,
): Promise<void> => {
  if (isAllZero(bytes)) await zero(at, bytes.length);
  else await target.writeCompressed(at, bytes);
};

/** Leaves out stretches of zeros that are aligned and long enough. */
const writeSparse = async (
  target: Node,
  at: GuestOffset,
  bytes: Uint8Array,
  sparseBytes: number,
  zero: Zero,
): Promise<void> => {
  if (sparseBytes === 0) return target.write(at, bytes);
  let start = 0;
  let wasZero: boolean | null = null;
  const put = async (end: number): Promise<void> => {
    if (end === start) return;
    const from = guestOffset(at + start);
    if (wasZero === true) await zero(from, end - start);
    else await target.write(from, bytes.subarray(start, end));
    start = end;
  };
  for (let block = 0; block < bytes.length; ) {
    const end = Math.min(bytes.length, alignDown(at + block, sparseBytes) + sparseBytes - at);
    const isZero = isAllZero(bytes.subarray(block, end));
    if (wasZero !== null && isZero !== wasZero) await put(block);
    wasZero = isZero;
    block = end;
  }
  await put(bytes.length);
};
