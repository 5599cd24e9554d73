/**
 * Reads the replies of a server: simple ones and the chunks of structured ones. Everything in them is checked against the
 * request that they answer before a byte is taken: lengths, offsets, that no byte of a read comes twice or not at all.
 */
import { readU64BE, viewOf } from '../../src/base/byte-order.ts';
import type { ByteSource } from './byte-source.ts';
import { Coverage } from './coverage.ts';
import type { ExportInfo } from './negotiation.ts';
import {
  CHUNK,
  CHUNK_DONE,
  COMMAND,
  ConnectionLost,
  MAX_STRING_BYTES,
  replyError,
  SIMPLE_REPLY_MAGIC,
  STRUCTURED_REPLY_MAGIC,
  serverText,
} from './protocol.ts';
import type { Extent, NbdRequest, Pending } from './request.ts';

/** Of one block status: a server that knows more says it at the next one. */
const MAX_EXTENTS = 64 << 10;
const EXTENT_BYTES = 8;

/** What has come of a structured reply. */
interface Progress {
  readonly coverage: Coverage;
  error: Error | null;
  extents: readonly Extent[] | null;
}

interface Chunk {
  readonly type: number;
  readonly isLast: boolean;
  readonly cookie: number;
  readonly lengthBytes: number;
}

export class ReplyReader {
  readonly #source: ByteSource;
  readonly #info: ExportInfo;
  readonly #pending: Map<number, Pending>;
  readonly #ended: () => void;
  readonly #progress = new Map<number, Progress>();
  readonly #head = new Uint8Array(20);

  /** `pending`: by cookie; what is answered is taken out. `ended`: called for each. */
  constructor(
    source: ByteSource,
    info: ExportInfo,
    pending: Map<number, Pending>,
    ended: () => void,
  ) {
    this.#source = source;
    this.#info = info;
    this.#pending = pending;
    this.#ended = ended;
  }

  /** One simple reply, or one chunk. Errors: ConnectionLost, also for what breaks the protocol. */
  async next(): Promise<void> {
    const view = viewOf(this.#head);
    await this.#source.fill(this.#head.subarray(0, 16));
    const magic = view.getUint32(0);
    if (magic === SIMPLE_REPLY_MAGIC) {
      await this.#simple(readU64BE(view, 8), view.getUint32(4));
    } else if (magic === STRUCTURED_REPLY_MAGIC && this.#info.structuredReplies) {
      await this.#source.fill(this.#head.subarray(16, 20));
      await this.#chunk({
        isLast: (view.getUint16(4) & CHUNK_DONE) !== 0,
        type: view.getUint16(6),
        cookie: readU64BE(view, 8),
        lengthBytes: view.getUint32(16),
      });
    } else throw broken(`a reply begins with 0x${magic.toString(16)}`);
  }

  async #simple(cookie: number, error: number): Promise<void> {
    const { request } = this.#of(cookie);
    if (error !== 0) {
      this.#end(cookie, replyError(error, ''));
      return;
    }
    const { command, target } = request;
    if (command === COMMAND.blockStatus) throw broken('a block status without extents');
    if (command === COMMAND.read) {
      if (this.#info.structuredReplies) throw broken('a read without chunks');
      if (target !== null) await this.#source.fill(target);
    }
    this.#end(cookie, []);
  }

  async #chunk(chunk: Chunk): Promise<void> {
    const { cookie, type, isLast } = chunk;
    const { request } = this.#of(cookie);
    let progress = this.#progress.get(cookie);
    if (progress === undefined) {
      progress = { coverage: new Coverage(), error: null, extents: null };
      this.#progress.set(cookie, progress);
    }
    if ((type & CHUNK.errorBit) !== 0) progress.error ??= await this.#error(chunk);
    else if (type === CHUNK.none) {
      if (chunk.lengthBytes !== 0 || !isLast) throw broken('an empty chunk that is not the end');
    } else if (type === CHUNK.offsetData) await this.#data(chunk, request, progress);
    else if (type === CHUNK.offsetHole) await this.#hole(chunk, request, progress);
    else if (type === CHUNK.blockStatus)
      progress.extents = await this.#extents(chunk, request, progress);
    else throw broken(`a chunk of type ${type}`);
    if (!isLast) return;
    const { coverage, error, extents } = progress;
    const { command, offset, lengthBytes } = request;
    if (error === null) {
      if (command === COMMAND.read && !coverage.isWhole(offset, offset + lengthBytes))
        throw broken('a read that does not bring all of its bytes');
      if (command === COMMAND.blockStatus && extents === null)
        throw broken('a block status without extents');
    }
    this.#end(cookie, error ?? extents ?? []);
  }

  async #data(chunk: Chunk, request: NbdRequest, progress: Progress): Promise<void> {
    if (chunk.lengthBytes < 9) throw broken(`a data chunk of ${chunk.lengthBytes} bytes`);
    await this.#source.fill(this.#head.subarray(0, 8));
    const start = readU64BE(viewOf(this.#head), 0);
    const piece = pieceOf(request, progress, start, chunk.lengthBytes - 8);
    await this.#source.fill(piece);
  }

  async #hole(chunk: Chunk, request: NbdRequest, progress: Progress): Promise<void> {
    if (chunk.lengthBytes !== 12) throw broken(`a hole chunk of ${chunk.lengthBytes} bytes`);
    await this.#source.fill(this.#head.subarray(0, 12));
    const view = viewOf(this.#head);
    pieceOf(request, progress, readU64BE(view, 0), view.getUint32(8)).fill(0);
  }

  async #extents(
    chunk: Chunk,
    request: NbdRequest,
    progress: Progress,
  ): Promise<readonly Extent[]> {
    const { lengthBytes } = chunk;
    const count = (lengthBytes - 4) / EXTENT_BYTES;
    if (request.command !== COMMAND.blockStatus || progress.extents !== null)
      throw broken('extents that nobody asked for');
    if (!Number.isInteger(count) || count < 1 || count > MAX_EXTENTS)
      throw broken(`a block status of ${lengthBytes} bytes`);
    const view = viewOf(await this.#source.take(lengthBytes));
    if (view.getUint32(0) !== this.#info.allocationContext)
      throw broken('a block status of another context');
    const extents: Extent[] = [];
    for (let i = 0; i < count; i++) {
      const at = 4 + i * EXTENT_BYTES;
      const extent = { lengthBytes: view.getUint32(at), state: view.getUint32(at + 4) };
      if (extent.lengthBytes === 0) throw broken('an extent of no bytes');
      extents.push(extent);
    }
    return extents;
  }

  async #error({ lengthBytes, type }: Chunk): Promise<Error> {
    if (lengthBytes < 6 || lengthBytes > MAX_STRING_BYTES + 14)
      throw broken(`an error chunk of ${lengthBytes} bytes`);
    const bytes = await this.#source.take(lengthBytes);
    const view = viewOf(bytes);
    const textBytes = view.getUint16(4);
    const tail = type === CHUNK.errorOffset ? 8 : 0;
    const knowsLength = type === CHUNK.error || type === CHUNK.errorOffset;
    if (knowsLength && lengthBytes !== 6 + textBytes + tail)
      throw broken('an error chunk whose text has another length');
    const number = view.getUint32(0);
    if (number === 0) throw broken('an error chunk without an error');
    return replyError(number, serverText(bytes.subarray(6, 6 + textBytes)));
  }

  #of(cookie: number): Pending {
    const pending = this.#pending.get(cookie);
    if (pending === undefined) throw broken('a reply to a request that was not made');
    return pending;
  }

  #end(cookie: number, outcome: readonly Extent[] | Error): void {
    const pending = this.#of(cookie);
    this.#pending.delete(cookie);
    this.#progress.delete(cookie);
    this.#ended();
    pending.settle(outcome);
  }
}

/** The part of a read's target that a chunk speaks of. */
const pieceOf = (
  request: NbdRequest,
  progress: Progress,
  start: number,
  lengthBytes: number,
): Uint8Array => {
  const { target, offset } = request;
  const end = start + lengthBytes;
  // NaN, of an offset past 2^53, fails both comparisons.
  const inside = start >= offset && end <= offset + request.lengthBytes && lengthBytes > 0;
  if (target === null || !inside) throw broken('a chunk outside of its request');
  if (!progress.coverage.add(start, end)) throw broken('a chunk with bytes that have come before');
  return target.subarray(start - offset, end - offset);
};

const broken = (what: string): ConnectionLost =>
  new ConnectionLost(`the server breaks the protocol: ${what}`);
