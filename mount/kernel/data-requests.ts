/** Requests on a view's data: READ, WRITE, FSYNC, FALLOCATE, LSEEK, COPY_FILE_RANGE. */
import { BlockError, toBlockError } from '../../src/base/block-error.ts';
import { isAllZero } from '../../src/base/range.ts';
import { guestOffset } from '../../src/base/units.ts';
import { FALLOC, SEEK } from '../../src/os/file-ranges.ts';
import type { Entry } from '../directory.ts';
import {
  COPY_FILE_RANGE_IN,
  FALLOCATE_IN,
  FSYNC_IN,
  LSEEK_IN,
  LSEEK_OUT_BYTES,
  READ_IN,
  WRITE_CACHE,
  WRITE_IN,
  WRITE_OUT_BYTES,
} from './abi.ts';
import { entryOf, type Handler, type HandlerContext } from './context.ts';
import { syncFailure } from './node-translations.ts';
import { type FuseRequest, REPLY_BODY_AT } from './request.ts';

/** Copied by one COPY_FILE_RANGE request at most: the caller asks again for the rest. */
const COPY_BYTES = 8 << 20;
const COPY_CHUNK_BYTES = 1 << 20;
/** Between two tries of a cached write that found no space. */
const STARVED_FIRST_MS = 100;
const STARVED_LAST_MS = 2000;

const offsetField = (request: FuseRequest, field: number): number => {
  const offset = request.u64(field);
  if (Number.isNaN(offset)) {
    throw new BlockError({
      kind: 'bad-request',
      errno: 'EFBIG',
      message: 'the offset is past 2^53',
    });
  }
  return offset;
};

/** A READ or a WRITE, and what it is of. */
interface Transfer {
  readonly request: FuseRequest;
  readonly entry: Entry;
  readonly offset: number;
  readonly size: number;
}

export const read: Handler = (request, context) => {
  const entry = entryOf(request, context);
  const offset = offsetField(request, READ_IN.offset);
  const size = Math.min(request.u32(READ_IN.size), context.maxTransferBytes);
  request.makeRoom(size);
  const got = entry.view.readAtOnce(guestOffset(offset), request.payload(size));
  if (got === null) return readWaiting({ request, entry, offset, size }, context);
  context.translations?.filled(entry, offset, got);
  return got;
};

const readWaiting = async (
  { request, entry, offset, size }: Transfer,
  context: HandlerContext,
): Promise<number> => {
  const got = await entry.view.read(guestOffset(offset), request.payload(size));
  context.translations?.filled(entry, offset, got);
  return got;
};

export const write: Handler = (request, context) => {
  const entry = entryOf(request, context);
  const offset = offsetField(request, WRITE_IN.offset);
  const size = request.u32(WRITE_IN.size);
  const transfer = { request, entry, offset, size };
  const cluster = clusterAlong(transfer, context);
  if (!entry.view.writeAtOnce(guestOffset(offset), request.payload(size), cluster))
    return writeWaiting(transfer, context);
  return written(transfer, context);
};

/** What the cluster of the write reads as, where a worker has read it along. */
const clusterAlong = (
  { request, entry, offset }: Transfer,
  { translations }: HandlerContext,
): Uint8Array | null => {
  const page = request.pageAlong();
  if (page === null || translations?.isInForce(entry, offset, page) !== true) return null;
  return request.pageBytes(page);
};

const writeWaiting = async (transfer: Transfer, context: HandlerContext): Promise<number> => {
  const { request, entry, offset, size } = transfer;
  const cached = (request.u32(WRITE_IN.writeFlags) & WRITE_CACHE) !== 0;
  try {
    await entry.view.write(guestOffset(offset), request.payload(size));
  } catch (error) {
    const failure = toBlockError(error);
    if (!cached || failure.kind !== 'no-space') throw failure;
    await writeWhenSpaceIsBack(transfer, context);
  }
  return written(transfer, context);
};

const written = (
  { request, entry, offset, size }: Transfer,
  { translations }: HandlerContext,
): number => {
  translations?.filled(entry, offset, size);
  request.reply.setUint32(REPLY_BODY_AT, size, true);
  request.reply.setUint32(REPLY_BODY_AT + 4, 0, true);
  return WRITE_OUT_BYTES;
};

// A failed write from the page cache is told to one fsync and then forgotten, and the data is gone: it is held and
// tried again until there is space, or the mount ends.
const writeWhenSpaceIsBack = async (
  { request, entry, offset, size }: Transfer,
  context: HandlerContext,
): Promise<void> => {
  context.release(request);
  const { log, starved } = context;
  const waiting = starved.get(request.nodeId) ?? 0;
  starved.set(request.nodeId, waiting + 1);
  if (waiting === 0)
    log.error(entry.name, 'no space left for its image: cached writes wait until there is');
  try {
    for (let waitMs = STARVED_FIRST_MS; ; waitMs = Math.min(waitMs * 2, STARVED_LAST_MS)) {
      const goesOn = await context.pause(waitMs);
      try {
        await entry.view.write(guestOffset(offset), request.payload(size));
        return;
      } catch (error) {
        const failure = toBlockError(error);
        if (!goesOn || failure.kind !== 'no-space') throw failure;
      }
    }
  } finally {
    const left = (starved.get(request.nodeId) ?? 1) - 1;
    if (left > 0) starved.set(request.nodeId, left);
    else starved.delete(request.nodeId);
    if (left === 0) log.info(entry.name, 'its cached writes go on');
  }
};

export const fsync: Handler = async (request, context) => {
  const entry = entryOf(request, context);
  const errno = request.u32(FSYNC_IN.padding);
  if (errno !== 0) {
    context.translations?.syncHasFailed(entry);
    throw syncFailure(errno);
  }
  await entry.view.flush();
  return 0;
};

export const fallocate: Handler = async (request, context) => {
  const entry = entryOf(request, context);
  const offset = offsetField(request, FALLOCATE_IN.offset);
  const length = offsetField(request, FALLOCATE_IN.length);
  const mode = request.u32(FALLOCATE_IN.mode);
  const keepSize = (mode & FALLOC.KEEP_SIZE) !== 0;
  const { view } = entry;
  const at = guestOffset(offset);
  switch (mode & ~FALLOC.KEEP_SIZE) {
    case FALLOC.PUNCH_HOLE:
      if (!keepSize)
        throw new BlockError({ kind: 'bad-request', message: 'a punch keeps the size' });
      await view.punchHole(at, length);
      return 0;
    case FALLOC.ZERO_RANGE:
      await view.zeroRange(at, length, { keepSize });
      return 0;
    case 0:
      await view.allocate(at, length, { keepSize });
      return 0;
    default:
      throw new BlockError({
        kind: 'unsupported',
        message: `fallocate mode 0x${mode.toString(16)}`,
      });
  }
};

export const lseek: Handler = async (request, context) => {
  const entry = entryOf(request, context);
  const offset = offsetField(request, LSEEK_IN.offset);
  const whence = request.u32(LSEEK_IN.whence);
  if (whence !== SEEK.DATA && whence !== SEEK.HOLE) {
    throw new BlockError({ kind: 'bad-request', message: `lseek whence ${whence}` });
  }
  const what = whence === SEEK.DATA ? 'data' : 'hole';
  // The kernel does not write its dirty pages before it asks: what looks like a hole here may not be one.
  const found = context.handles.mayHoldDirtyPages(request.nodeId)
    ? seekAllData(offset, await entry.view.lengthBytes(), what)
    : await entry.view.seek(guestOffset(offset), what);
  request.reply.setBigUint64(REPLY_BODY_AT, BigInt(found), true);
  return LSEEK_OUT_BYTES;
};

const seekAllData = (offset: number, lengthBytes: number, what: 'data' | 'hole'): number => {
  if (offset < lengthBytes) return what === 'data' ? offset : lengthBytes;
  throw new BlockError({ kind: 'out-of-range', op: 'seek', message: 'past the end', offset });
};

export const copyFileRange: Handler = async (request, context) => {
  const from = entryOf(request, context);
  const to = entryOf(request, context, request.u64(COPY_FILE_RANGE_IN.nodeIdOut));
  const offsetIn = offsetField(request, COPY_FILE_RANGE_IN.offsetIn);
  const offsetOut = offsetField(request, COPY_FILE_RANGE_IN.offsetOut);
  const length = Math.min(offsetField(request, COPY_FILE_RANGE_IN.length), COPY_BYTES);
  context.release(request);
  const buffer = new Uint8Array(Math.min(length, COPY_CHUNK_BYTES));
  let done = 0;
  while (done < length) {
    const part = buffer.subarray(0, Math.min(buffer.length, length - done));
    const got = await from.view.read(guestOffset(offsetIn + done), part);
    if (got === 0) break;
    await copyOut(to, offsetOut + done, part.subarray(0, got));
    done += got;
  }
  request.reply.setUint32(REPLY_BODY_AT, done, true);
  request.reply.setUint32(REPLY_BODY_AT + 4, 0, true);
  return WRITE_OUT_BYTES;
};

// Zeros become holes, as `cp --sparse` would have them; past the end only a write or a zeroed range makes the file grow.
const copyOut = async (to: Entry, offset: number, bytes: Uint8Array): Promise<void> => {
  const at = guestOffset(offset);
  if (!isAllZero(bytes)) await to.view.write(at, bytes);
  else if (offset + bytes.length <= (await to.view.lengthBytes()))
    await to.view.punchHole(at, bytes.length);
  else await to.view.zeroRange(at, bytes.length, { keepSize: false });
};
