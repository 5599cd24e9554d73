/**
 * Messages of unix sockets that carry descriptors (SCM_RIGHTS): fusermount3's answer, systemd's notification socket, and what an
 * engine begins with.
 */
import { BlockError } from '../base/block-error.ts';
import { addressOf, check, libc } from './c-library.ts';

const socketCall = libc.func('int socket(int domain, int type, int protocol)');
const socketpairCall = libc.func(
  'int socketpair(int domain, int type, int protocol, _Out_ int *ends)',
);
const recvmsgCall = libc.func('int64_t recvmsg(int fd, uint8_t *message, int flags)');
const sendmsgCall = libc.func('int64_t sendmsg(int fd, uint8_t *message, int flags)');
const closeCall = libc.func('int close(int fd)');

const AF_UNIX = 1;
const SOCK = { STREAM: 1, DATAGRAM: 2, CLOEXEC: 0o2000000 } as const;
const MSG = { NOSIGNAL: 0x4000, DONTWAIT: 0x40, CMSG_CLOEXEC: 0x40000000 } as const;
const SOL_SOCKET = 1;
const SCM_RIGHTS = 1;

/** struct msghdr of 64-bit Linux: name at 0, its length u32 at 8, iovec at 16, count at 24, control at 32, length at 40. */
const MSGHDR_BYTES = 56;
/** struct cmsghdr: length u64, level s32, type s32; then the descriptors, s32 each. */
const CONTROL_HEADER_BYTES = 16;
const CONTROL_BYTES = 64;
/** struct sockaddr_un: family u16, then 108 bytes. */
const ADDRESS_BYTES = 110;
const MAX_PATH_BYTES = 107;

/** Memory that does not move: small typed arrays may lie in the heap until their buffer is asked for. */
const pinned = (bytes: number): Uint8Array => new Uint8Array(new ArrayBuffer(bytes));

const viewOf = (bytes: Uint8Array): DataView => new DataView(bytes.buffer);

interface MessageParts {
  readonly payload: Uint8Array;
  readonly control: Uint8Array;
  readonly address?: { readonly bytes: Uint8Array; readonly length: number };
}

const iovec = pinned(16);
const header = pinned(MSGHDR_BYTES);
/** What the header points to during a call, so that nothing of it is collected. */
let inUse: MessageParts | null = null;

/** Calls with a struct msghdr over the parts. Synchronous, so one header is enough. */
const withMessage = (parts: MessageParts, call: (message: Uint8Array) => void): void => {
  const { payload, control, address } = parts;
  inUse = parts;
  viewOf(iovec).setBigUint64(0, BigInt(addressOf(payload)), true);
  viewOf(iovec).setBigUint64(8, BigInt(payload.length), true);
  const view = viewOf(header);
  header.fill(0);
  if (address !== undefined) {
    view.setBigUint64(0, BigInt(addressOf(address.bytes)), true);
    view.setUint32(8, address.length, true);
  }
  view.setBigUint64(16, BigInt(addressOf(iovec)), true);
  view.setBigUint64(24, 1n, true);
  if (control.length > 0) view.setBigUint64(32, BigInt(addressOf(control)), true);
  view.setBigUint64(40, BigInt(control.length), true);
  try {
    call(header);
  } finally {
    inUse = inUse === parts ? null : inUse;
  }
};

/**
 * A connected pair of stream sockets, one of which a child is given; no other child inherits them. Both are the caller's to
 * close.
 */
export const socketPair = (): readonly [number, number] => {
  const ends = [0, 0];
  check('socketpair', Number(socketpairCall(AF_UNIX, SOCK.STREAM | SOCK.CLOEXEC, 0, ends)));
  return [ends[0] ?? -1, ends[1] ?? -1];
};

/**
 * Receives the descriptors of one message, not inherited by children; none when the peer closed without sending any. Blocks
 * until either.
 */
export const receiveDescriptors = (socket: number): number[] => {
  const payload = pinned(8);
  const control = pinned(CONTROL_BYTES);
  withMessage({ payload, control }, (message) =>
    check('recvmsg', Number(recvmsgCall(socket, message, MSG.CMSG_CLOEXEC))),
  );
  const got = Number(viewOf(header).getBigUint64(40, true));
  if (got < CONTROL_HEADER_BYTES) return [];
  const end = Math.min(got, Number(viewOf(control).getBigUint64(0, true)));
  const count = Math.floor((end - CONTROL_HEADER_BYTES) / 4);
  return Array.from({ length: count }, (_, i) =>
    viewOf(control).getInt32(CONTROL_HEADER_BYTES + 4 * i, true),
  );
};

/** Sends copies of descriptors, 12 at most, in one message over a stream socket. Errors: EPIPE when the peer is gone. */
export const sendDescriptors = (socket: number, descriptors: readonly number[]): void => {
  const parts = { payload: pinned(1), control: rightsOf(descriptors) };
  withMessage(parts, (message) =>
    check('sendmsg', Number(sendmsgCall(socket, message, MSG.NOSIGNAL))),
  );
};

/** A path, or with `@` in front an abstract name. Errors: EINVAL for what no socket can have. */
const addressFor = (path: string): { bytes: Uint8Array; length: number } => {
  const name = Buffer.from(path);
  if (!/^[/@]./.test(path) || name.length > MAX_PATH_BYTES) {
    throw new BlockError({ kind: 'bad-request', message: 'is no address of a socket', path });
  }
  const bytes = pinned(ADDRESS_BYTES);
  viewOf(bytes).setUint16(0, AF_UNIX, true);
  bytes.set(name, 2);
  const isAbstract = path.startsWith('@');
  if (isAbstract) bytes[2] = 0;
  return { bytes, length: 2 + name.length + (isAbstract ? 0 : 1) };
};

const rightsOf = (descriptors: readonly number[]): Uint8Array => {
  if (descriptors.length === 0) return pinned(0);
  const length = CONTROL_HEADER_BYTES + 4 * descriptors.length;
  const control = pinned(Math.ceil(length / 8) * 8);
  const view = viewOf(control);
  view.setBigUint64(0, BigInt(length), true);
  view.setInt32(8, SOL_SOCKET, true);
  view.setInt32(12, SCM_RIGHTS, true);
  descriptors.forEach((fd, i) => {
    view.setInt32(CONTROL_HEADER_BYTES + 4 * i, fd, true);
  });
  return control;
};

/**
 * Sends one datagram with copies of `descriptors` to a socket by its path (`@name`: abstract). Never waits. Errors:
 * EAGAIN when the receiver's queue is full, ENOENT, ECONNREFUSED, EINVAL for what is no socket's path.
 */
export const sendDatagram = (
  path: string,
  text: string,
  descriptors: readonly number[] = [],
): void => {
  const address = addressFor(path);
  const payload = pinned(Buffer.byteLength(text));
  payload.set(Buffer.from(text));
  const control = rightsOf(descriptors);
  const socket = Number(socketCall(AF_UNIX, SOCK.DATAGRAM | SOCK.CLOEXEC, 0));
  check('socket', socket);
  try {
    withMessage({ payload, control, address }, (message) =>
      check('sendmsg', Number(sendmsgCall(socket, message, MSG.NOSIGNAL | MSG.DONTWAIT)), path),
    );
  } finally {
    closeCall(socket);
  }
};
