/**
 * Copy-on-read: what is read through a node from its backing becomes the node's own.
 *
 * The backing is read in whole clusters into a buffer of ours. The reader gets its part at once; the copy is written
 * afterwards, from the same buffer, and a copy that fails costs the reader nothing. Readers of what is being fetched, or
 * written, share that buffer: each cluster is fetched once. Who reads on sequentially gets more fetched in advance, in a
 * window that doubles; who jumps about gets no more than the clusters that it touches.
 *
 * Concurrency: any number of readers. The guest's writes win over copies (`Node.populate`). Reads that a driver makes for
 * its own copy-on-write do not come here: they hold locks that a copy would wait for.
 */

import { Parts } from '../base/parts.ts';
import { alignDown, alignUp, isAllZero } from '../base/range.ts';
import { type GuestOffset, guestOffset } from '../base/units.ts';
import type { Node } from './node.ts';

/** One fetch; a longer read is several. */
const MAX_FETCH_BYTES = 1 << 20;
const FIRST_WINDOW_BYTES = 256 << 10;
const MAX_WINDOW_BYTES = 8 << 20;
/** Fetched, or waiting to be written. With more, nothing is read in advance, and readers wait for their copies. */
const MAX_PENDING_BYTES = 32 << 20;
/** Sequential readers that are followed at the same time. */
const MAX_READERS = 8;
/** Of the readers that came lately, so many have to have read on for the next one to be read for in advance at once. */
const READS_ON_SHARE = 0.25;
/** How much the last reader counts. */
const READER_WEIGHT = 1 / 8;

interface Fetch {
  readonly start: number;
  readonly end: number;
  /** The bytes as they were read from the backing; never changed afterwards. */
  readonly bytes: Promise<Uint8Array>;
  /** Ends when the copy is written, or has failed. Never rejects. */
  copied: Promise<void>;
}

/** Where a sequential reader is expected next, and how far in advance it is read for. */
interface Reader {
  next: number;
  /** It has come to another cluster than its first. */
  readsOn: boolean;
  /** Something that it read was not there yet: for who reads what is, nothing is fetched. */
  needsBacking: boolean;
  /** Read one after the other so far. */
  sequentialBytes: number;
  windowBytes: number;
  fetchedTo: number;
}

export interface CopyOnReadOptions {
  readonly node: Node;
  /** A copy could not be written; the reader was served. */
  readonly failed: (error: unknown) => void;
}

export class CopyOnRead {
  readonly #node: Node;
  readonly #failed: (error: unknown) => void;
  /** By the start of each cluster in them. */
  readonly #fetches = new Map<number, Fetch>();
  /** The one used last at the end. */
  readonly #readers: Reader[] = [];
  /** Looks ahead that have not ended. */
  readonly #looks = new Set<Promise<void>>();
  #pendingBytes = 0;
  /** Of the readers that came lately, how many read on past their first cluster: files do, databases do not. */
  #readsOn = 0;

  constructor({ node, failed }: CopyOnReadOptions) {
    this.#node = node;
    this.#failed = failed;
  }

  /** Fills the buffer from the backing; the range is unallocated in the node. Errors: those of the backing's read. */
  async read(offset: GuestOffset, buffer: Uint8Array): Promise<void> {
    const waits = new Parts();
    const end = offset + buffer.length;
    for (let at: number = offset; at < end; ) {
      const fetch = this.#fetchAt(at, end);
      const upTo = Math.min(end, fetch.end);
      const part = buffer.subarray(at - offset, upTo - offset);
      const skip = at - fetch.start;
      waits.add(fetch.bytes.then((bytes) => part.set(bytes.subarray(skip, skip + part.length))));
      if (this.#pendingBytes > MAX_PENDING_BYTES) waits.add(fetch.copied);
      at = upTo;
    }
    await waits.results();
  }

  /** Resolves when nothing is fetched or copied any more; nobody reads meanwhile. */
  async settled(): Promise<void> {
    while (this.#looks.size > 0 || this.#fetches.size > 0) {
      await Promise.all(this.#looks);
      await Promise.all([...this.#fetches.values()].map((fetch) => fetch.copied));
    }
  }

  /** The fetch that has a byte, or a new one from there on, as far as `end` and the next that is at work. */
  #fetchAt(at: number, end: number): Fetch {
    const { clusterBytes } = this.#node.driver;
    const start = alignDown(at, clusterBytes);
    const known = this.#fetches.get(start);
    if (known !== undefined) return known;
    const limit = Math.min(
      alignUp(end, clusterBytes),
      start + Math.max(clusterBytes, alignDown(MAX_FETCH_BYTES, clusterBytes)),
    );
    let stop = start + clusterBytes;
    while (stop < limit && !this.#fetches.has(stop)) stop += clusterBytes;
    return this.#begin(start, Math.min(stop, this.#node.lengthBytes));
  }

  #begin(start: number, end: number): Fetch {
    const { clusterBytes } = this.#node.driver;
    const bytes = this.#load(start, end);
    const fetch: Fetch = { start, end, bytes, copied: Promise.resolve() };
    this.#pendingBytes += end - start;
    for (let at = start; at < end; at += clusterBytes) this.#fetches.set(at, fetch);
    fetch.copied = bytes
      .then((content) => this.#keep(start, content))
      .catch(() => undefined)
      .finally(() => {
        this.#pendingBytes -= end - start;
        for (let at = start; at < end; at += clusterBytes) this.#fetches.delete(at);
      });
    return fetch;
  }

  async #load(start: number, end: number): Promise<Uint8Array> {
    const bytes = Buffer.allocUnsafeSlow(end - start);
    const { backing } = this.#node;
    // A stream may have dropped the chain since: then everything is the node's own.
    if (backing === null) await this.#node.readForCopy(guestOffset(start), bytes);
    else await backing.readClipped(guestOffset(start), bytes);
    return bytes;
  }

  async #keep(start: number, bytes: Uint8Array): Promise<void> {
    try {
      const content = isAllZero(bytes) ? null : bytes;
      await this.#node.populate(guestOffset(start), bytes.length, content);
    } catch (error) {
      this.#failed(error);
    }
  }

  /**
   * A read of the node, wherever its bytes lie: fetches in advance what a sequential reader will want. What workers read
   * alone is not seen here: a reader that comes back further on, where it was read for in advance, has read on.
   */
  noticeRead(start: number, end: number): void {
    const look = this.#readAhead(start, end)
      .catch(() => undefined)
      .finally(() => this.#looks.delete(look));
    this.#looks.add(look);
  }

  #judge({ readsOn }: Reader): void {
    this.#readsOn += ((readsOn ? 1 : 0) - this.#readsOn) * READER_WEIGHT;
  }

  async #readAhead(start: number, end: number): Promise<void> {
    const { lengthBytes, driver } = this.#node;
    // Its clusters are fetched whole: the rest of the last one is read by workers, and the reader comes back behind it.
    const wholeEnd = Math.min(lengthBytes, alignUp(end, driver.clusterBytes));
    const index = this.#readers.findIndex((r) => start >= r.next && start <= r.fetchedTo);
    const reader =
      index < 0
        ? {
            next: end,
            readsOn: false,
            needsBacking: false,
            sequentialBytes: 0,
            windowBytes: 0,
            fetchedTo: wholeEnd,
          }
        : (this.#readers.splice(index, 1)[0] as Reader);
    this.#readers.push(reader);
    if (this.#readers.length > MAX_READERS) this.#judge(this.#readers.shift() as Reader);
    reader.sequentialBytes += index < 0 ? end - start : end - reader.next;
    if (index >= 0 && wholeEnd > alignUp(reader.next, driver.clusterBytes)) reader.readsOn = true;
    reader.next = end;
    reader.fetchedTo = Math.max(reader.fetchedTo, wholeEnd);
    const { kind } = await driver.mapping(guestOffset(start), end - start);
    reader.needsBacking ||= kind === 'unallocated';
    if (!reader.needsBacking) return;
    const isExpectedOn = index < 0 && this.#readsOn > READS_ON_SHARE;
    if (isExpectedOn) return this.#fetchUnallocated(reader, wholeEnd + driver.clusterBytes);
    if (reader.sequentialBytes <= driver.clusterBytes) return;
    // Half of the window is used up before more is asked for, so that pieces are large.
    const at = reader.fetchedTo;
    const isAhead = reader.windowBytes > 0 && at - end > reader.windowBytes / 2;
    if (isAhead || at >= lengthBytes) return;
    reader.windowBytes = Math.min(
      MAX_WINDOW_BYTES,
      Math.max(FIRST_WINDOW_BYTES, reader.windowBytes * 2),
    );
    await this.#fetchUnallocated(reader, end + reader.windowBytes);
  }

  /** Fetches in advance, as far as `to`, what the node does not have. */
  async #fetchUnallocated(reader: Reader, to: number): Promise<void> {
    const { lengthBytes, driver } = this.#node;
    const target = Math.min(lengthBytes, to);
    let at = reader.fetchedTo;
    while (at < target && this.#pendingBytes < MAX_PENDING_BYTES) {
      const m = await driver.mapping(guestOffset(at), target - at);
      const runEnd = at + m.lengthBytes;
      while (m.kind === 'unallocated' && at < runEnd && this.#pendingBytes < MAX_PENDING_BYTES) {
        const fetch = this.#fetchAt(at, runEnd);
        fetch.bytes.catch(() => undefined);
        at = fetch.end;
      }
      at = Math.max(at, runEnd);
    }
    reader.fetchedTo = Math.max(reader.fetchedTo, at);
  }
}
