/**
 * The numbers of the NBD protocol (the specification is doc/proto.md of the NetworkBlockDevice project), and the errors
 * that end a connection or a request. All integers are big-endian.
 */
import { BlockError, type BlockErrorKind } from '../../src/base/block-error.ts';
import { viewOf, writeU64BE } from '../../src/base/byte-order.ts';
import type { ErrnoName } from '../../src/base/errno.ts';

/** First bytes of a server that speaks newstyle: NBDMAGIC, IHAVEOPT. */
export const GREETING = 'NBDMAGICIHAVEOPT';
/** The second magic number of the oldstyle, which knows no exports by name. */
export const OLD_STYLE_MAGIC = Buffer.from('00420281861253', 'hex');
export const OPTION_MAGIC = Buffer.from('IHAVEOPT', 'latin1');
export const OPTION_REPLY_MAGIC = Buffer.from('0003e889045565a9', 'hex');

export const HANDSHAKE_FLAG = { fixedNewstyle: 1, noZeroes: 2 } as const;

export const OPTION = { exportName: 1, go: 7, structuredReply: 8, setMetaContext: 10 } as const;

export const OPTION_REPLY = {
  ack: 1,
  info: 3,
  metaContext: 4,
  errorBit: 0x8000_0000,
  errUnsupported: 0x8000_0001,
  errPolicy: 0x8000_0002,
  errTlsRequired: 0x8000_0005,
  errUnknownExport: 0x8000_0006,
} as const;

export const INFO = { export: 0, blockSize: 3 } as const;

/** Transmission flags of an export. */
export const EXPORT_FLAG = {
  readOnly: 1 << 1,
  flush: 1 << 2,
  fua: 1 << 3,
  trim: 1 << 5,
  writeZeroes: 1 << 6,
  multiConn: 1 << 8,
} as const;

export const COMMAND = {
  read: 0,
  write: 1,
  disconnect: 2,
  flush: 3,
  trim: 4,
  writeZeroes: 6,
  blockStatus: 7,
} as const;

export type Command = (typeof COMMAND)[keyof typeof COMMAND];

export const COMMAND_FLAG = { fua: 1, noHole: 2 } as const;

const REQUEST_MAGIC = 0x25609513;
export const SIMPLE_REPLY_MAGIC = 0x67446698;
export const STRUCTURED_REPLY_MAGIC = 0x668e33ef;
export const REQUEST_BYTES = 28;

export const CHUNK = {
  none: 0,
  offsetData: 1,
  offsetHole: 2,
  blockStatus: 5,
  error: 0x8001,
  errorOffset: 0x8002,
  errorBit: 0x8000,
} as const;
export const CHUNK_DONE = 1;

/** `base:allocation` extents. */
export const STATE = { hole: 1, zero: 2 } as const;

/** Longest string of the protocol. */
export const MAX_STRING_BYTES = 4096;

export const encodeRequest = (request: {
  readonly command: Command;
  readonly flags: number;
  readonly cookie: number;
  readonly offset: number;
  readonly lengthBytes: number;
}): Uint8Array => {
  const bytes = new Uint8Array(REQUEST_BYTES);
  const view = viewOf(bytes);
  view.setUint32(0, REQUEST_MAGIC);
  view.setUint16(4, request.flags);
  view.setUint16(6, request.command);
  writeU64BE(view, 8, request.cookie);
  writeU64BE(view, 16, request.offset);
  view.setUint32(24, request.lengthBytes);
  return bytes;
};

/** The connection has ended, or the server has broken the protocol on it: requests on it may be sent again on another. */
export class ConnectionLost extends Error {
  override readonly name = 'ConnectionLost';
}

const ERRORS: Readonly<Record<number, { kind: BlockErrorKind; errno: ErrnoName; what: string }>> = {
  1: { kind: 'not-permitted', errno: 'EPERM', what: 'the server does not permit it' },
  5: { kind: 'io', errno: 'EIO', what: 'the server had an I/O error' },
  12: { kind: 'io', errno: 'EIO', what: 'the server had no memory for it' },
  22: { kind: 'io', errno: 'EIO', what: 'the server calls the request invalid' },
  28: { kind: 'no-space', errno: 'ENOSPC', what: 'the server has no space left' },
  75: { kind: 'io', errno: 'EIO', what: 'the server calls the request too large' },
  95: { kind: 'unsupported', errno: 'EOPNOTSUPP', what: 'the server does not support it' },
};
/** The server is going away: the request was not done, and may be sent again to the one that comes after it. */
const SHUTTING_DOWN = 108;

/** An error number of a reply, with the text that may come along. */
export const replyError = (number: number, text: string): BlockError | ConnectionLost => {
  if (number === SHUTTING_DOWN) return new ConnectionLost('the server is shutting down');
  const known = ERRORS[number] ?? {
    kind: 'io' as const,
    errno: 'EIO' as const,
    what: `the server answers error ${number}`,
  };
  const { kind, errno, what } = known;
  return new BlockError({ kind, errno, message: text === '' ? what : `${what} (${text})` });
};

/** A text of the server's for a message of ours: bounded. */
export const serverText = (bytes: Uint8Array): string =>
  Buffer.from(bytes).toString('utf8').slice(0, 200).trim();
