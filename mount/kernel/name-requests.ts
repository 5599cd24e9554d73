/** Requests on names and attributes: LOOKUP, GETATTR, SETATTR, OPEN, RELEASE, listings, STATFS, extended attributes. */
import { BlockError } from '../../src/base/block-error.ts';
import { type Entry, type FileAttributes, ROOT_NODE_ID } from '../directory.ts';
import {
  ENTRY_OUT_BYTES,
  FOPEN,
  GETXATTR_IN,
  GETXATTR_OUT_BYTES,
  O_ACCMODE,
  O_DIRECT,
  OPEN_IN,
  OPEN_OUT_BYTES,
  READ_IN,
  RELEASE_IN,
  SETATTR,
  SETATTR_IN,
} from './abi.ts';
import { entryOf, type Handler, type HandlerContext, noticePassthrough } from './context.ts';
import { PASSTHROUGH_HANDLE } from './passthrough.ts';
import {
  direntBytes,
  type ListedName,
  timeFrom,
  writeAttrOut,
  writeDirent,
  writeEntryOut,
  writeStatfs,
} from './replies.ts';
import { type FuseRequest, REPLY_BODY_AT } from './request.ts';

/** Cookies: 1 for `.`, 2 for `..`, and a view's node id, which is 2 or more, plus 1. */
const cookieOf = (nodeId: number): number => nodeId + 1;
/** Entries whose attributes are looked up at once for one listing. */
const LISTING_BATCH = 64;

const isRoot = (request: FuseRequest): boolean => request.nodeId === ROOT_NODE_ID;

const attributesOf = (request: FuseRequest, context: HandlerContext): Promise<FileAttributes> =>
  isRoot(request)
    ? context.directory.rootAttributes()
    : attributesOfEntry(entryOf(request, context), context);

// What the kernel writes by itself may have made the file longer.
const attributesOfEntry = async (
  entry: Entry,
  context: HandlerContext,
): Promise<FileAttributes> => {
  noticePassthrough(entry, context);
  await entry.view.reloadLength();
  return entry.attributes();
};

export const lookup: Handler = async (request, context) => {
  if (!isRoot(request))
    throw new BlockError({
      kind: 'bad-request',
      errno: 'ENOTDIR',
      message: 'a view has no names below it',
    });
  const name = request.text(0);
  const entry = await context.directory.lookup(name);
  if (entry === null) throw new BlockError({ kind: 'not-found', message: `no view '${name}'` });
  const attributes = await attributesOfEntry(entry, context);
  context.remembered(entry.nodeId);
  return writeEntryOut(request.reply, REPLY_BODY_AT, entry.nodeId, attributes);
};

export const getattr: Handler = async (request, context) => {
  const attributes = await attributesOf(request, context);
  return writeAttrOut(request.reply, REPLY_BODY_AT, request.nodeId, attributes);
};

export const setattr: Handler = async (request, context) => {
  const valid = request.u32(SETATTR_IN.valid);
  const size = request.u64(SETATTR_IN.size);
  const accessMs = newTime(
    request,
    valid,
    SETATTR.ATIME,
    SETATTR.ATIME_NOW,
    SETATTR_IN.accessTime,
    SETATTR_IN.accessNanoseconds,
  );
  const modifyMs = newTime(
    request,
    valid,
    SETATTR.MTIME,
    SETATTR.MTIME_NOW,
    SETATTR_IN.modifyTime,
    SETATTR_IN.modifyNanoseconds,
  );
  if (isRoot(request) || (valid & (SETATTR.MODE | SETATTR.UID | SETATTR.GID)) !== 0) {
    const message = 'owner and mode are those of the image file';
    throw new BlockError({
      kind: 'not-permitted',
      errno: 'EPERM',
      op: 'setattr',
      message,
      hint: 'change them there',
    });
  }
  const entry = entryOf(request, context);
  const resizes = (valid & SETATTR.SIZE) !== 0;
  if (resizes) {
    if (Number.isNaN(size))
      throw new BlockError({ kind: 'bad-request', errno: 'EFBIG', message: 'past 2^53 bytes' });
    await attributesOfEntry(entry, context);
    await entry.view.truncate(size);
  }
  const timed =
    accessMs === null && modifyMs === null ? null : await entry.setTimes(accessMs, modifyMs);
  const attributes = timed === null || resizes ? await attributesOfEntry(entry, context) : timed;
  return writeAttrOut(request.reply, REPLY_BODY_AT, request.nodeId, attributes);
};

const newTime = (
  request: FuseRequest,
  valid: number,
  flag: number,
  nowFlag: number,
  secondsField: number,
  nanosecondsField: number,
): number | null => {
  if ((valid & nowFlag) !== 0) return Date.now();
  return (valid & flag) === 0
    ? null
    : timeFrom(request.u64(secondsField), request.u32(nanosecondsField));
};

export const open: Handler = async (request, context) => {
  const entry = entryOf(request, context);
  const flags = request.u32(OPEN_IN.flags);
  const { view } = entry;
  // Before the look at its permission: why an image cannot be opened at all says more.
  const root = view.isHeld ? null : await view.open();
  if ((flags & O_ACCMODE) !== 0 && view.readOnly) {
    const message = `the view is read-only: ${view.readOnlyReason}`;
    throw new BlockError({ kind: 'read-only', op: 'open', message });
  }
  const isKnown = root === null || context.passthrough?.isUsed(entry.nodeId) === true;
  const flat = isKnown ? null : await context.passthrough?.flatFileOf(root, view.readOnly);
  // Nothing is awaited from here on: who opens it meanwhile gets the same.
  const alone = !context.handles.mayBeOpen(entry.nodeId);
  const backingId =
    root === null ? null : (context.passthrough?.open(entry, flat ?? null, alone) ?? null);
  context.directory.opened(entry);
  if (backingId !== null) {
    const handle = { flags: FOPEN.PASSTHROUGH, number: PASSTHROUGH_HANDLE, backingId };
    return writeOpenOut(request, handle);
  }
  context.handles.opened(entry.nodeId, flags);
  // The kernel lets direct writes of one file run side by side only through handles that are direct altogether.
  // And whoever opens a held view to write it has his writes held, not taken into pages which are dropped later.
  const isDirect = (flags & O_DIRECT) !== 0 || (root === null && (flags & O_ACCMODE) !== 0);
  const direct = isDirect ? FOPEN.DIRECT_IO | FOPEN.PARALLEL_DIRECT_WRITES : 0;
  return writeOpenOut(request, { flags: FOPEN.KEEP_CACHE | direct });
};

export const release: Handler = async (request, context) => {
  const isPassthrough = request.u64(RELEASE_IN.handle) === PASSTHROUGH_HANDLE;
  const entry = context.directory.byNodeId(request.nodeId);
  if (isPassthrough) await releasePassthrough(request, context, entry);
  const known =
    isPassthrough || context.handles.released(request.nodeId, request.u32(RELEASE_IN.flags));
  if (known && entry !== null) context.directory.released(entry);
  return 0;
};

// The image takes up what was written past its end before anybody opens it otherwise.
const releasePassthrough = async (
  { nodeId }: FuseRequest,
  { passthrough, log }: HandlerContext,
  entry: Entry | null,
): Promise<void> => {
  if (entry !== null) {
    entry.view.isWrittenBeside = true;
    await entry.view.reloadLength().catch((error: unknown) => {
      log.error(entry.name, `what was written past its end is not shown: ${String(error)}`);
    });
  }
  passthrough?.released(nodeId);
  if (entry !== null) entry.view.isWrittenBeside = passthrough?.isUsed(nodeId) === true;
};

export const opendir: Handler = (request) => writeOpenOut(request, { flags: 0 });

const writeOpenOut = (
  request: FuseRequest,
  handle: { readonly flags: number; readonly number?: number; readonly backingId?: number },
): number => {
  request.reply.setBigUint64(REPLY_BODY_AT, BigInt(handle.number ?? 0), true);
  request.reply.setUint32(REPLY_BODY_AT + 8, handle.flags, true);
  request.reply.setInt32(REPLY_BODY_AT + 12, handle.backingId ?? 0, true);
  return OPEN_OUT_BYTES;
};

export const statfs: Handler = async (request, context) =>
  writeStatfs(request.reply, REPLY_BODY_AT, await context.directory.space());

interface Listing {
  readonly listed: ListedName;
  readonly entry: Entry | null;
}

// In the order of node ids: a listing that goes on after names came or went misses and repeats nothing.
const listingFrom = async (context: HandlerContext, cookie: number): Promise<Listing[]> => {
  const dots: Listing[] = ['.', '..'].map((name, i) => ({
    listed: { nodeId: ROOT_NODE_ID, name, isDirectory: true, cookie: i + 1 },
    entry: null,
  }));
  const entries = [...(await context.directory.entries())].sort((a, b) => a.nodeId - b.nodeId);
  const views = entries.map((entry) => ({
    listed: {
      nodeId: entry.nodeId,
      name: entry.name,
      isDirectory: false,
      cookie: cookieOf(entry.nodeId),
    },
    entry,
  }));
  return [...dots, ...views].filter((l) => l.listed.cookie > cookie);
};

export const readdir: Handler = async (request, context) => {
  const cookie = request.u64(READ_IN.offset);
  const size = Math.min(request.u32(READ_IN.size), context.maxTransferBytes);
  const listing = await listingFrom(context, cookie);
  request.makeRoom(size);
  let length = 0;
  for (const { listed } of listing) {
    if (length + direntBytes(listed.name) > size) break;
    length += writeDirent(request.bytes, request.reply, REPLY_BODY_AT + length, listed);
  }
  return length;
};

export const readdirplus: Handler = async (request, context) => {
  const cookie = request.u64(READ_IN.offset);
  const size = Math.min(request.u32(READ_IN.size), context.maxTransferBytes);
  const listing = await listingFrom(context, cookie);
  request.makeRoom(size);
  let length = 0;
  for (let from = 0; from < listing.length; from += LISTING_BATCH) {
    const batch = listing.slice(from, from + LISTING_BATCH);
    const attributes = await Promise.all(
      batch.map((l) => (l.entry === null ? null : attributesOfEntry(l.entry, context))),
    );
    for (const [i, { listed }] of batch.entries()) {
      if (length + ENTRY_OUT_BYTES + direntBytes(listed.name) > size) return length;
      length += writeDirentPlus(
        request,
        context,
        REPLY_BODY_AT + length,
        listed,
        attributes[i] ?? null,
      );
    }
  }
  return length;
};

// `.` and `..` come with node id 0: the kernel takes the name alone.
const writeDirentPlus = (
  request: FuseRequest,
  context: HandlerContext,
  at: number,
  listed: ListedName,
  attributes: FileAttributes | null,
): number => {
  if (attributes === null) request.bytes.fill(0, at, at + ENTRY_OUT_BYTES);
  else {
    writeEntryOut(request.reply, at, listed.nodeId, attributes);
    context.remembered(listed.nodeId);
  }
  return ENTRY_OUT_BYTES + writeDirent(request.bytes, request.reply, at + ENTRY_OUT_BYTES, listed);
};

const extendedAttributesOf = (
  request: FuseRequest,
  context: HandlerContext,
): Promise<ReadonlyMap<string, string>> =>
  isRoot(request)
    ? context.directory.rootExtendedAttributes()
    : entryOf(request, context).extendedAttributes();

/** The value, or its length when the caller asked with size 0. */
const writeValue = (request: FuseRequest, size: number, value: Uint8Array): number => {
  if (size === 0) {
    request.reply.setUint32(REPLY_BODY_AT, value.length, true);
    request.reply.setUint32(REPLY_BODY_AT + 4, 0, true);
    return GETXATTR_OUT_BYTES;
  }
  if (value.length > size)
    throw new BlockError({ kind: 'bad-request', errno: 'ERANGE', message: 'the value is longer' });
  request.makeRoom(value.length);
  request.bytes.set(value, REPLY_BODY_AT);
  return value.length;
};

export const getxattr: Handler = async (request, context) => {
  const size = request.u32(GETXATTR_IN.size);
  const name = request.text(GETXATTR_IN.bytes);
  // Asked for on many a write; it is never there.
  const known = name.startsWith('user.')
    ? (await extendedAttributesOf(request, context)).get(name)
    : undefined;
  if (known === undefined)
    throw new BlockError({
      kind: 'not-found',
      errno: 'ENODATA',
      message: `no attribute '${name}'`,
    });
  return writeValue(request, size, Buffer.from(known));
};

export const listxattr: Handler = async (request, context) => {
  const size = request.u32(GETXATTR_IN.size);
  const names = [...(await extendedAttributesOf(request, context)).keys()];
  return writeValue(request, size, Buffer.from(names.map((n) => `${n}\0`).join('')));
};

export const setxattr: Handler = () => {
  throw new BlockError({
    kind: 'not-permitted',
    errno: 'EPERM',
    message: 'extended attributes are read-only',
  });
};

/** Names cannot be made, moved or removed here: they are the files of the source directory. */
export const refuseChange: Handler = (_request, context) => {
  const errno = context.readOnly ? 'EROFS' : 'EPERM';
  const message = 'the names of a mount are those of its images';
  throw new BlockError({ kind: 'not-permitted', errno, message });
};

export const refuseIoctl: Handler = () => {
  throw new BlockError({ kind: 'unsupported', errno: 'ENOTTY', message: 'views have no ioctls' });
};
