/**
 * An export of an NBD server as a protocol node: cuts requests into pieces that the server takes, reads and writes around
 * its block size, and remembers what it last said of allocation.
 */
import { BlockError } from '../../src/base/block-error.ts';
import { Parts } from '../../src/base/parts.ts';
import { alignDown, alignUp } from '../../src/base/range.ts';
import { type GuestOffset, guestOffset, type HostOffset } from '../../src/base/units.ts';
import type {
  DriverInstance,
  Mapping,
  RemoteState,
  WriteZeroesOptions,
} from '../../src/block/driver.ts';
import { RangeLocks } from '../../src/block/range-locks.ts';
import { PIECE_BYTES } from './limits.ts';
import { COMMAND, COMMAND_FLAG, type Command, EXPORT_FLAG, STATE } from './protocol.ts';
import type { Extent, NbdRequest } from './request.ts';
import type { Session } from './session.ts';

/** Longest range of a command without a payload: lengths have 32 bits. */
const MAX_RANGE_BYTES = 0x8000_0000;

interface Run {
  readonly start: number;
  readonly end: number;
  readonly stored: boolean;
}

export class RemoteDisk implements DriverInstance {
  readonly clusterBytes = 1;
  readonly backingLink = null;
  /** Writes past the end come here, and get the errno of a full disk. */
  readonly growsOnWrite = true;
  readonly lengthBytes: number;
  readonly remote: RemoteState;
  readonly #session: Session;
  /** Writes that share a block of the server wait for each other; a server with blocks of one byte needs no locks. */
  readonly #locks = new RangeLocks();
  /** What the last block status has said, in order; empty after a change. */
  #known: readonly Run[] = [];
  /** Counts changes: an answer about what was before them is not remembered. */
  #changes = 0;

  constructor(session: Session) {
    this.#session = session;
    this.lengthBytes = alignDown(session.info.sizeBytes, session.info.minBlockBytes);
    this.remote = {
      // The protocol has nothing that tells one content from another.
      version: null,
      isWritable: !this.#has(EXPORT_FLAG.readOnly),
      get isStale() {
        return session.isStale;
      },
    };
  }

  mapping(_offset: GuestOffset, lengthBytes: number): Mapping {
    return { kind: 'opaque', lengthBytes };
  }

  async read(offset: GuestOffset, buffer: Uint8Array): Promise<void> {
    const start = this.#down(offset);
    const end = this.#up(offset + buffer.length);
    if (start === offset && end === offset + buffer.length) {
      await this.#readBlocks(offset, buffer);
      return;
    }
    const bounce = new Uint8Array(end - start);
    await this.#readBlocks(start, bounce);
    buffer.set(bounce.subarray(offset - start, offset - start + buffer.length));
  }

  async write(offset: GuestOffset, buffer: Uint8Array): Promise<void> {
    this.#refusePastEnd(offset, buffer.length);
    using _blocks = await this.#lock(offset, buffer.length);
    await this.#change(async () => {
      const start = this.#down(offset);
      const end = this.#up(offset + buffer.length);
      // A copy: it may have to be sent again after the caller has his buffer back.
      const bytes = new Uint8Array(end - start);
      const tail = this.#down(end - 1);
      if (start < offset) await this.#readBlocks(start, this.#blockOf(bytes, 0));
      const needsTail = end > offset + buffer.length && (tail > start || start === offset);
      if (needsTail) await this.#readBlocks(tail, this.#blockOf(bytes, tail - start));
      bytes.set(buffer, offset - start);
      await this.#writeBlocks(start, bytes);
    });
  }

  async writeZeroes(
    offset: GuestOffset,
    lengthBytes: number,
    options: WriteZeroesOptions,
  ): Promise<void> {
    this.#refusePastEnd(offset, lengthBytes);
    await this.#onWholeBlocks(offset, lengthBytes, (start, end) =>
      this.#zeroBlocks(start, end, options),
    );
  }

  async discard(offset: GuestOffset, lengthBytes: number): Promise<void> {
    if (this.#has(EXPORT_FLAG.writeZeroes) || !this.#has(EXPORT_FLAG.trim) || !this.#tellsState) {
      await this.writeZeroes(offset, lengthBytes, { unmap: true });
      return;
    }
    this.#refusePastEnd(offset, lengthBytes);
    await this.#onWholeBlocks(offset, lengthBytes, (start, end) => this.#trimBlocks(start, end));
  }

  async stores(
    offset: HostOffset,
    lengthBytes: number,
  ): Promise<{ stored: boolean; lengthBytes: number }> {
    if (!this.#tellsState) return { stored: true, lengthBytes };
    const run = this.#runAt(offset) ?? (await this.#askState(offset, lengthBytes));
    return { stored: run.stored, lengthBytes: Math.min(lengthBytes, run.end - offset) };
  }

  async flush(): Promise<void> {
    await this.#session.flush();
  }

  async resize(lengthBytes: number): Promise<void> {
    if (lengthBytes === this.lengthBytes) return;
    if (lengthBytes > this.lengthBytes) throw this.#noSpace(lengthBytes);
    const message = 'an export of an NBD server keeps its size';
    throw new BlockError({ kind: 'unsupported', message, op: 'resize' });
  }

  async allocatedBytes(): Promise<number> {
    return this.lengthBytes;
  }

  async close(): Promise<void> {
    await this.#session.close();
  }

  get #tellsState(): boolean {
    return this.#session.info.allocationContext !== null;
  }

  #has(flag: number): boolean {
    return (this.#session.info.flags & flag) !== 0;
  }

  #down(offset: number): number {
    return alignDown(offset, this.#session.info.minBlockBytes);
  }

  #up(offset: number): number {
    return alignUp(offset, this.#session.info.minBlockBytes);
  }

  #blockOf(bytes: Uint8Array, at: number): Uint8Array {
    return bytes.subarray(at, at + this.#session.info.minBlockBytes);
  }

  async #lock(offset: number, lengthBytes: number): Promise<Disposable> {
    if (this.#session.info.minBlockBytes === 1) return { [Symbol.dispose]: () => undefined };
    return this.#locks.acquire({ start: this.#down(offset), end: this.#up(offset + lengthBytes) });
  }

  /** What is known of allocation is forgotten before a change, and again after it. */
  async #change(run: () => Promise<void>): Promise<void> {
    const forget = (): void => {
      this.#known = [];
      this.#changes++;
    };
    forget();
    await run().finally(forget);
  }

  async #readBlocks(offset: number, buffer: Uint8Array): Promise<void> {
    await this.#inPieces(offset, buffer.length, this.#pieceBytes, (at, lengthBytes) => {
      const target = buffer.subarray(at - offset, at - offset + lengthBytes);
      return this.#perform(COMMAND.read, at, lengthBytes, { target });
    });
  }

  async #writeBlocks(offset: number, bytes: Uint8Array): Promise<void> {
    await this.#inPieces(offset, bytes.length, this.#pieceBytes, (at, lengthBytes) => {
      const payload = bytes.subarray(at - offset, at - offset + lengthBytes);
      return this.#perform(COMMAND.write, at, lengthBytes, { payload });
    });
  }

  /** `run` on the blocks that lie wholly in a range; zeros are written to the rest of it. */
  async #onWholeBlocks(
    offset: number,
    lengthBytes: number,
    run: (start: number, end: number) => Promise<void>,
  ): Promise<void> {
    const end = offset + lengthBytes;
    const [first, last] = [this.#up(offset), this.#down(end)];
    if (first >= last) {
      await this.write(guestOffset(offset), new Uint8Array(lengthBytes));
      return;
    }
    if (first > offset) await this.write(guestOffset(offset), new Uint8Array(first - offset));
    {
      using _blocks = await this.#lock(first, last - first);
      await this.#change(() => run(first, last));
    }
    if (end > last) await this.write(guestOffset(last), new Uint8Array(end - last));
  }

  async #zeroBlocks(start: number, end: number, options: WriteZeroesOptions): Promise<void> {
    if (!this.#has(EXPORT_FLAG.writeZeroes)) {
      const zeroes = new Uint8Array(Math.min(end - start, this.#pieceBytes));
      for (let at = start; at < end; at += zeroes.length) {
        await this.#writeBlocks(at, zeroes.subarray(0, Math.min(zeroes.length, end - at)));
      }
      return;
    }
    const flags = options.unmap ? 0 : COMMAND_FLAG.noHole;
    await this.#inPieces(start, end - start, MAX_RANGE_BYTES, (at, lengthBytes) =>
      this.#perform(COMMAND.writeZeroes, at, lengthBytes, { flags }),
    );
  }

  // What a trim leaves is not said; block status says where it is zeros, and the rest is written.
  async #trimBlocks(start: number, end: number): Promise<void> {
    await this.#inPieces(start, end - start, MAX_RANGE_BYTES, (at, lengthBytes) =>
      this.#perform(COMMAND.trim, at, lengthBytes, {}),
    );
    for (let at = start; at < end; ) {
      const run = await this.#askState(at, end - at);
      const until = Math.min(end, run.end);
      if (run.stored) await this.#zeroBlocks(at, until, { unmap: true });
      at = until;
    }
  }

  #runAt(offset: number): Run | null {
    return this.#known.find((run) => run.start <= offset && offset < run.end) ?? null;
  }

  async #askState(offset: number, lengthBytes: number): Promise<Run> {
    const start = this.#down(offset);
    const end = Math.min(this.#up(offset + lengthBytes), start + MAX_RANGE_BYTES);
    const changes = this.#changes;
    const extents = await this.#perform(COMMAND.blockStatus, start, end - start, {});
    const runs: Run[] = [];
    let at = start;
    for (const { lengthBytes: length, state } of extents) {
      // The last one may be longer than what was asked, also than the export.
      const until = Math.min(at + length, this.lengthBytes);
      runs.push({ start: at, end: until, stored: (state & STATE.zero) === 0 });
      at = until;
    }
    if (changes === this.#changes) this.#known = runs;
    const run = runs.find((r) => r.start <= offset && offset < r.end);
    if (run !== undefined) return run;
    const message = 'the server does not tell what is at the offset that it was asked about';
    throw new BlockError({ kind: 'io', message, offset });
  }

  get #pieceBytes(): number {
    const { maxPayloadBytes, minBlockBytes } = this.#session.info;
    return alignDown(Math.min(PIECE_BYTES, maxPayloadBytes), minBlockBytes);
  }

  // All at the same time; the caller has his buffer back when none of them uses it any more.
  async #inPieces(
    offset: number,
    lengthBytes: number,
    pieceBytes: number,
    run: (at: number, lengthBytes: number) => Promise<unknown>,
  ): Promise<void> {
    if (lengthBytes <= pieceBytes) {
      await run(offset, lengthBytes);
      return;
    }
    const pieces = new Parts<unknown>();
    for (let done = 0; done < lengthBytes; done += pieceBytes) {
      pieces.add(run(offset + done, Math.min(pieceBytes, lengthBytes - done)));
    }
    await pieces.results();
  }

  #perform(
    command: Command,
    offset: number,
    lengthBytes: number,
    more: Partial<Pick<NbdRequest, 'flags' | 'payload' | 'target'>>,
  ): Promise<readonly Extent[]> {
    const { flags = 0, payload = null, target = null } = more;
    return this.#session.perform({ command, flags, offset, lengthBytes, payload, target });
  }

  #refusePastEnd(offset: number, lengthBytes: number): void {
    const end = offset + lengthBytes;
    if (end > this.lengthBytes) throw this.#noSpace(end);
  }

  #noSpace(end: number): BlockError {
    const message = `the export ends at ${this.lengthBytes} bytes, and cannot grow to ${end}`;
    return new BlockError({ kind: 'no-space', message });
  }
}
