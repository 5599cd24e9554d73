/**
 * The fixed newstyle handshake: structured replies, the context `base:allocation`, and the export with its block sizes.
 * Every length of the server's is checked before memory is taken for it.
 */
import type { Socket } from 'node:net';
import { BlockError } from '../../src/base/block-error.ts';
import { readU64BE, viewOf } from '../../src/base/byte-order.ts';
import { isPowerOfTwo } from '../../src/base/range.ts';
import type { ByteSource } from './byte-source.ts';
import { DEFAULT_MAX_PAYLOAD_BYTES } from './limits.ts';
import {
  ConnectionLost,
  GREETING,
  HANDSHAKE_FLAG,
  INFO,
  OLD_STYLE_MAGIC,
  OPTION,
  OPTION_MAGIC,
  OPTION_REPLY,
  OPTION_REPLY_MAGIC,
  serverText,
} from './protocol.ts';

/** What server and client have agreed on. */
export interface ExportInfo {
  readonly sizeBytes: number;
  /** See `EXPORT_FLAG`. */
  readonly flags: number;
  /** Offsets and lengths of requests are multiples of it. */
  readonly minBlockBytes: number;
  /** Longest payload of a read or write. */
  readonly maxPayloadBytes: number;
  readonly structuredReplies: boolean;
  /** Id of `base:allocation`; null without block status. */
  readonly allocationContext: number | null;
}

const MAX_OPTION_REPLY_BYTES = 64 << 10;
const MAX_OPTION_REPLIES = 64;
const ALLOCATION = 'base:allocation';
const MAX_MIN_BLOCK_BYTES = 64 << 10;

interface OptionReply {
  readonly type: number;
  readonly data: Uint8Array;
}

/**
 * Errors: ConnectionLost; BlockError for a server that does not have what is needed, or not this export.
 */
export const negotiate = async (
  socket: Socket,
  source: ByteSource,
  exportName: string,
): Promise<ExportInfo> => {
  const serverFlags = await greet(socket, source);
  const talk = new OptionTalk(socket, source);
  const structuredReplies = await talk.offersStructuredReplies();
  const allocationContext = structuredReplies ? await talk.allocationContext(exportName) : null;
  const found = await talk.go(exportName);
  const agreed = { structuredReplies, allocationContext };
  if (found !== null) return { ...found, ...agreed };
  const noZeroes = (serverFlags & HANDSHAKE_FLAG.noZeroes) !== 0;
  return { ...(await talk.exportByName(exportName, noZeroes)), ...agreed };
};

const greet = async (socket: Socket, source: ByteSource): Promise<number> => {
  const greeting = Buffer.from(await source.take(GREETING.length));
  if (greeting.toString('latin1') !== GREETING) {
    const isOld = greeting.subarray(9, 16).equals(OLD_STYLE_MAGIC);
    throw new BlockError({
      kind: 'unsupported',
      message: isOld ? 'the server speaks the oldstyle of NBD only' : 'it is no NBD server',
    });
  }
  const flags = viewOf(await source.take(2)).getUint16(0);
  if ((flags & HANDSHAKE_FLAG.fixedNewstyle) === 0) {
    const message = 'the server does not speak fixed newstyle';
    throw new BlockError({ kind: 'unsupported', message });
  }
  const answer = Buffer.alloc(4);
  answer.writeUInt32BE(flags & (HANDSHAKE_FLAG.fixedNewstyle | HANDSHAKE_FLAG.noZeroes));
  socket.write(answer);
  return flags;
};

type Found = Pick<ExportInfo, 'sizeBytes' | 'flags' | 'minBlockBytes' | 'maxPayloadBytes'>;

class OptionTalk {
  readonly #socket: Socket;
  readonly #source: ByteSource;

  constructor(socket: Socket, source: ByteSource) {
    this.#socket = socket;
    this.#source = source;
  }

  async offersStructuredReplies(): Promise<boolean> {
    const replies = await this.#ask(OPTION.structuredReply, new Uint8Array());
    return replies.at(-1)?.type === OPTION_REPLY.ack;
  }

  async allocationContext(exportName: string): Promise<number | null> {
    const query = Buffer.from(ALLOCATION);
    const data = Buffer.concat([sized(exportName), u32(1), u32(query.length), query]);
    const replies = await this.#ask(OPTION.setMetaContext, data);
    if (replies.at(-1)?.type !== OPTION_REPLY.ack) return null;
    for (const { type, data: context } of replies) {
      if (type !== OPTION_REPLY.metaContext || context.length < 4) continue;
      if (Buffer.from(context.subarray(4)).toString('utf8') === ALLOCATION) {
        return viewOf(context).getUint32(0);
      }
    }
    return null;
  }

  /** Null when the server does not know the option: then the export is asked for in the old way. */
  async go(exportName: string): Promise<Found | null> {
    const wanted = Buffer.alloc(4);
    wanted.writeUInt16BE(1, 0);
    wanted.writeUInt16BE(INFO.blockSize, 2);
    const replies = await this.#ask(OPTION.go, Buffer.concat([sized(exportName), wanted]));
    const last = replies.at(-1);
    if (last?.type === OPTION_REPLY.errUnsupported) return null;
    if (last?.type !== OPTION_REPLY.ack) throw refused(last, exportName);
    let size: Pick<Found, 'sizeBytes' | 'flags'> | null = null;
    let blocks = { minBlockBytes: 1, maxPayloadBytes: DEFAULT_MAX_PAYLOAD_BYTES };
    for (const { type, data } of replies) {
      if (type !== OPTION_REPLY.info || data.length < 2) continue;
      const view = viewOf(data);
      const what = view.getUint16(0);
      if (what === INFO.export && data.length === 12) {
        size = { sizeBytes: checkedSize(readU64BE(view, 2)), flags: view.getUint16(10) };
      } else if (what === INFO.blockSize && data.length === 14) {
        blocks = checkedBlocks(view.getUint32(2), view.getUint32(6), view.getUint32(10));
      }
    }
    if (size === null) throw new ConnectionLost('the server does not tell the size of the export');
    return { ...size, ...blocks };
  }

  async exportByName(exportName: string, noZeroes: boolean): Promise<Found> {
    this.#send(OPTION.exportName, Buffer.from(exportName));
    const answer = await this.#source.take(noZeroes ? 10 : 134);
    const view = viewOf(answer);
    return {
      sizeBytes: checkedSize(readU64BE(view, 0)),
      flags: view.getUint16(8),
      minBlockBytes: 1,
      maxPayloadBytes: DEFAULT_MAX_PAYLOAD_BYTES,
    };
  }

  #send(option: number, data: Uint8Array): void {
    this.#socket.write(Buffer.concat([OPTION_MAGIC, u32(option), u32(data.length), data]));
  }

  /** All replies; the last one is an ACK or an error. */
  async #ask(option: number, data: Uint8Array): Promise<OptionReply[]> {
    this.#send(option, data);
    const replies: OptionReply[] = [];
    while (replies.length < MAX_OPTION_REPLIES) {
      const head = Buffer.from(await this.#source.take(20));
      const length = head.readUInt32BE(16);
      if (!head.subarray(0, 8).equals(OPTION_REPLY_MAGIC) || head.readUInt32BE(8) !== option) {
        throw new ConnectionLost(`the reply to option ${option} does not begin like one`);
      }
      if (length > MAX_OPTION_REPLY_BYTES) {
        throw new ConnectionLost(`the reply to option ${option} has ${length} bytes`);
      }
      const type = head.readUInt32BE(12);
      replies.push({ type, data: await this.#source.take(length) });
      if (type === OPTION_REPLY.ack || type >= OPTION_REPLY.errorBit) return replies;
    }
    throw new ConnectionLost(`more than ${MAX_OPTION_REPLIES} replies to option ${option}`);
  }
}

const u32 = (value: number): Buffer => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
};

const sized = (text: string): Buffer => {
  const bytes = Buffer.from(text);
  return Buffer.concat([u32(bytes.length), bytes]);
};

const checkedSize = (sizeBytes: number): number => {
  if (Number.isSafeInteger(sizeBytes)) return sizeBytes;
  const message = 'the export is longer than 2^53 bytes';
  throw new BlockError({ kind: 'unsupported', message });
};

const checkedBlocks = (
  minBlockBytes: number,
  preferred: number,
  max: number,
): { minBlockBytes: number; maxPayloadBytes: number } => {
  const sound =
    isPowerOfTwo(minBlockBytes) &&
    minBlockBytes <= MAX_MIN_BLOCK_BYTES &&
    preferred >= minBlockBytes &&
    max >= minBlockBytes;
  if (!sound) {
    const sizes = `${minBlockBytes}, ${preferred} and ${max}`;
    throw new BlockError({
      kind: 'unsupported',
      message: `the server's block sizes ${sizes} make no sense`,
    });
  }
  const bounded = Math.min(max, DEFAULT_MAX_PAYLOAD_BYTES);
  return { minBlockBytes, maxPayloadBytes: bounded - (bounded % minBlockBytes) };
};

const refused = (reply: OptionReply | undefined, exportName: string): BlockError => {
  const text = serverText(reply?.data ?? new Uint8Array());
  const said = text === '' ? '' : `: ${text}`;
  switch (reply?.type) {
    case OPTION_REPLY.errUnknownExport:
      return new BlockError({
        kind: 'not-found',
        message: `the server has no export '${exportName}'${said}`,
      });
    case OPTION_REPLY.errTlsRequired:
      return new BlockError({
        kind: 'unsupported',
        message: `the server wants TLS, which is not supported for NBD${said}`,
      });
    case OPTION_REPLY.errPolicy:
      return new BlockError({
        kind: 'not-permitted',
        message: `the server refuses the export '${exportName}'${said}`,
      });
    default: {
      const type = (reply?.type ?? 0).toString(16);
      const message = `the server answers option error 0x${type} for '${exportName}'${said}`;
      return new BlockError({ kind: 'io', message });
    }
  }
};
