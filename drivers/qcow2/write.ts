/**
 * Guest writes. In place where a cluster is this image's alone; else into new clusters, with copy-on-write of what the
 * guest does not write.
 *
 * Order of an allocating write: lock the clusters, take host clusters, write data (copied parts with it), map them in
 * memory, journal, answer. A failure before the mapping changes gives the clusters back and leaves the old content.
 */
import { assert } from '../../src/base/assert.ts';
import { BlockError } from '../../src/base/block-error.ts';
import { allOf, Parts } from '../../src/base/parts.ts';
import { alignDown, alignUp, isAllZero } from '../../src/base/range.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { Mapping } from '../../src/block/driver.ts';
import { type Content, HostRange, notCopied } from '../../src/block/host-range.ts';
import type { CachedTable } from '../../src/block/table-cache.ts';
import type { Allocation, Allocator } from './allocator.ts';
import { BufferPool } from './buffer-pool.ts';
import { CompressedWriter } from './compressed-write.ts';
import { DataClusters } from './data-clusters.ts';
import { entryOffset, isCopied, plainEntry } from './entry.ts';
import type { Change } from './journal-records.ts';
import { type EntryLookup, hasPlace } from './lookup.ts';
import type { ImageState } from './state.ts';
import { runsOf } from './subclusters.ts';
import type { OwnTables } from './tables.ts';
import { WriterAtOnce } from './write-at-once.ts';
import {
  filledMask,
  keptMask,
  type Target,
  targetEntry,
  targetOf,
  wholeTarget,
} from './write-target.ts';

/** Pieces up to this are put together and written at once: one system call costs more than copying them. */
const ASSEMBLE_BYTES = 256 << 10;

/** What space is filled with, where it cannot just read as zeros, is in memory: so much at once. More than a cluster. */
const MAX_FILL_BYTES = 8 << 20;

/** How clusters without content get a place. */
interface PlaceHow {
  readonly isPlain: boolean;
  /** The host's space is taken. */
  readonly space: boolean;
}

const KEPT_ZERO: PlaceHow = { isPlain: false, space: true };

interface PublishHow {
  readonly asZeros?: boolean;
  /** The bytes are what was read there before. */
  readonly isCopy?: boolean;
}

const COPY: PublishHow = { isCopy: true };

interface Piece {
  /** Guest offset. */
  readonly guest: number;
  readonly bytes: Content;
}

export class Writer {
  readonly #state: ImageState;
  readonly #lookup: EntryLookup;
  readonly #clusters: DataClusters;
  readonly #tables: OwnTables;
  readonly #compressed: CompressedWriter;
  readonly #buffers = new BufferPool();
  readonly #atOnce: WriterAtOnce;

  constructor(state: ImageState, lookup: EntryLookup, allocator: Allocator, tables: OwnTables) {
    this.#state = state;
    this.#lookup = lookup;
    this.#clusters = new DataClusters(state, allocator);
    this.#tables = tables;
    this.#compressed = new CompressedWriter(state, allocator);
    const { clusters, buffers } = { clusters: this.#clusters, buffers: this.#buffers };
    this.#atOnce = new WriterAtOnce({ state, lookup, clusters, tables, buffers });
    state.compressedUnmapped = (first, last) => this.#compressed.forget(first, last);
  }

  /** See `DriverInstance.writeAtOnce`. */
  writeAtOnce(offset: number, buffer: Uint8Array): boolean {
    return this.#atOnce.write(offset, buffer);
  }

  /** See `DriverInstance.write`. */
  async write(offset: number, buffer: Content): Promise<void> {
    const pieces = new Parts();
    try {
      for (let done = 0; done < buffer.length; ) {
        const at = offset + done;
        const m = await this.#lookup.mapping(guestOffset(at), buffer.length - done);
        const length = isInPlace(m)
          ? m.lengthBytes
          : await this.#allocatingRun(at, buffer.length - done, m);
        const part = buffer.subarray(done, done + length);
        pieces.add(isInPlace(m) ? this.#writeInPlace(m, at, part) : this.#writeLocked(at, part));
        done += length;
      }
    } finally {
      // The buffer is the caller's again only when nobody reads it any more.
      await pieces.settled();
    }
    await pieces.results();
  }

  /**
   * Writes one whole guest cluster packed, where that makes it smaller. The last cluster's bytes past the image's end
   * are zeros. Errors: as `write`.
   */
  async writeCompressed(offset: number, buffer: Uint8Array): Promise<void> {
    const { clusterBytes, locks, file, map, request, dataFile } = this.#state;
    assert(offset % clusterBytes === 0, 'a compressed write begins at a cluster');
    if (this.#state.data.isEncrypted) throw this.#packedPlain();
    if (dataFile !== null) {
      const message = 'has an external data file, and so no compressed clusters';
      throw new BlockError({ kind: 'unsupported', message, path: request.path });
    }
    const cluster = buffer.length === clusterBytes ? buffer : new Uint8Array(clusterBytes);
    if (cluster !== buffer) cluster.set(buffer);
    const packed = await this.#compressed.pack(cluster);
    if (packed === null) return this.write(offset, buffer);
    const lock = await locks.acquire({ start: offset, end: offset + clusterBytes });
    try {
      const place = map.place(offset);
      this.#lookup.kindForChange(await this.#tables.sliceFor(place), place.index);
      // A failure leaves its place leaked; the journal knows that it is counted.
      const placed = await this.#compressed.place(packed.length);
      await file.write(guestOffset(placed.hostOffset), packed);
      const slice = await this.#tables.sliceFor(place);
      const old = map.entry(slice, place.index);
      const change = map.setEntry(slice, place.index, plainEntry(placed.entry));
      this.#state.unmapEntry(old);
      request.mappingChanged({ start: guestOffset(offset), lengthBytes: clusterBytes });
      await this.#state.record([change]);
    } finally {
      lock.release();
    }
  }

  #packedPlain(): BlockError {
    const message = 'is encrypted, and compressed clusters are not: they cannot be written';
    return new BlockError({ kind: 'bad-request', message, path: this.#state.request.path });
  }

  /**
   * See `DriverInstance.populate`. What is unallocated under the lock reads from the backing, which nobody changes: the
   * copy is what the guest sees there.
   */
  async populate(offset: number, bytes: Content): Promise<void> {
    const { clusterBytes, locks } = this.#state;
    const end = offset + bytes.length;
    for (let at = offset; at < end; ) {
      const next = Math.min(end, at + this.#sliceSpan(at));
      const lock = await locks.acquire({ start: at, end: alignUp(next, clusterBytes) });
      try {
        while (at < next) {
          const m = await this.#lookup.mapping(guestOffset(at), next - at);
          const part = bytes.subarray(at - offset, at - offset + m.lengthBytes);
          at +=
            m.kind === 'unallocated' ? await this.#writeAllocating(at, part, COPY) : part.length;
        }
      } finally {
        lock.release();
      }
    }
  }

  /**
   * Gives clusters a place that have none, content unchanged; what reads as zeros gets plain entries over fresh places where
   * `how` says so, else entries that say zero. Errors: ENOSPC.
   */
  async allocate(offset: number, lengthBytes: number, how = KEPT_ZERO): Promise<void> {
    const { clusterBytes } = this.#state;
    const end = alignUp(offset + lengthBytes, clusterBytes);
    for (let at = alignDown(offset, clusterBytes); at < end; ) {
      const next = Math.min(end, at + this.#sliceSpan(at));
      const lock = await this.#state.locks.acquire({ start: at, end: next });
      try {
        for (let done = at; done < next; )
          done += await this.#allocateUnwritten(done, next - done, how);
      } finally {
        lock.release();
      }
      at = next;
    }
  }

  /** How far from `at` neither piece can be written in place: one lock, and allocations that stay together. */
  async #allocatingRun(at: number, lengthBytes: number, first: Mapping): Promise<number> {
    const span = Math.min(lengthBytes, this.#sliceSpan(at));
    let run = Math.min(first.lengthBytes, span);
    // To the end of its cluster at least, or two locks would meet in one cluster.
    while (run < span) {
      const m = await this.#lookup.mapping(guestOffset(at + run), span - run);
      if (isInPlace(m)) break;
      run += m.lengthBytes;
    }
    return Math.min(run, span);
  }

  /** Guest bytes from an offset to the end of its L2 slice. */
  #sliceSpan(at: number): number {
    const { map, clusterBytes } = this.#state;
    const bytes = map.sliceEntries * clusterBytes;
    return bytes - (at % bytes);
  }

  async #writeInPlace(m: Mapping & { kind: 'data' }, guest: number, bytes: Content): Promise<void> {
    await this.#state.data.write({ guest, host: m.hostOffset }, bytes);
  }

  async #writeLocked(offset: number, buffer: Content): Promise<void> {
    const { clusterBytes, locks } = this.#state;
    const start = alignDown(offset, clusterBytes);
    const lock = await locks.acquire({ start, end: alignUp(offset + buffer.length, clusterBytes) });
    try {
      for (let done = 0; done < buffer.length; ) {
        // Looked up again: who held the lock before may have mapped it.
        const m = await this.#lookup.mapping(guestOffset(offset + done), buffer.length - done);
        const rest = buffer.subarray(done, isInPlace(m) ? done + m.lengthBytes : buffer.length);
        if (isInPlace(m)) await this.#writeInPlace(m, offset + done, rest);
        done += isInPlace(m) ? m.lengthBytes : await this.#writeAllocating(offset + done, rest);
      }
    } finally {
      lock.release();
    }
  }

  /** Allocates for the clusters from `offset` on, as many as fit together; returns how many bytes were written. */
  async #writeAllocating(offset: number, buffer: Content, how: PublishHow = {}): Promise<number> {
    const { clusterBytes, map } = this.#state;
    const start = alignDown(offset, clusterBytes);
    const place = map.place(offset);
    const slice = await this.#tables.sliceFor(place);
    const wanted = Math.min(
      Math.ceil((offset - start + buffer.length) / clusterBytes),
      map.sliceEntries - place.index,
    );
    const kept = this.#keptTarget(slice, place.index, offset, buffer.length);
    if (kept !== null) {
      const part = buffer.subarray(0, kept.filled.to - offset);
      await this.#fill(kept, offset, part);
      await this.#publish(kept, null, how);
      return part.length;
    }
    let clusters = Math.max(1, map.emptyRun(slice, place.index, wanted));
    while (clusters < wanted && this.#needsCluster(slice, place.index + clusters)) clusters++;
    const allocation = await this.#clusters.allocate(start, clusters);
    const part = buffer.subarray(
      0,
      Math.min(buffer.length, start + allocation.count * clusterBytes - offset),
    );
    const target = await this.#undoingOnFailure(allocation, async () => {
      // Asked for again after the await; its entries are locked.
      const table = await this.#tables.sliceFor(place);
      const write = { offset, lengthBytes: part.length };
      const found = targetOf(this.#state, allocation, { table, index: place.index }, write);
      await this.#copyKept(found);
      await this.#fill(found, offset, part);
      return found;
    });
    await this.#publish(target, allocation, how);
    return part.length;
  }

  /**
   * The host cluster that this image alone has for what reads as zeros or from below: it is used. With subclusters, as far as
   * the next one that holds data, which is written in place.
   */
  #keptTarget(
    slice: CachedTable,
    index: number,
    offset: number,
    lengthBytes: number,
  ): Target | null {
    const { map, clusterBytes, subclusterBytes } = this.#state;
    const { high, low, allocated } = map.entry(slice, index);
    const subcluster = map.subclusterOf(offset);
    const kind = this.#lookup.kindForChange(slice, index, subcluster);
    if ((kind !== 'zero-allocated' && kind !== 'reserved') || !isCopied(high)) return null;
    const start = alignDown(offset, clusterBytes);
    const [data] = runsOf(allocated & ~((1 << subcluster) - 1));
    const end = data === undefined ? start + clusterBytes : start + data.first * subclusterBytes;
    const to = Math.min(end, alignUp(offset + lengthBytes, subclusterBytes));
    const filled = { from: alignDown(offset, subclusterBytes), to };
    return { start, clusters: 1, hostOffset: entryOffset(high, low), isFresh: false, filled };
  }

  /** What is packed, shared or nowhere cannot be written where it is. */
  #needsCluster(slice: CachedTable, index: number): boolean {
    const { high } = this.#state.map.entry(slice, index);
    return !hasPlace(this.#lookup.kindForChange(slice, index)) || !isCopied(high);
  }

  /** Brings the subclusters that the guest does not write from a shared cluster to the new one; nobody writes them in place. */
  async #copyKept(target: Target): Promise<void> {
    const { map, clusterBytes, subclusterBytes, data } = this.#state;
    if (!map.hasSubclusters) return;
    const place = map.place(target.start);
    for (const i of new Set([0, target.clusters - 1])) {
      const old = map.entry(await this.#tables.sliceFor(place), place.index + i);
      for (const { first, count } of runsOf(keptMask(old, filledMask(this.#state, target, i)))) {
        const bytes = new Uint8Array(count * subclusterBytes);
        const inTarget = i * clusterBytes + first * subclusterBytes;
        const guest = target.start + inTarget;
        const from = entryOffset(old.high, old.low) + first * subclusterBytes;
        await data.read({ guest, host: from }, bytes);
        await data.write({ guest, host: target.hostOffset + inTarget }, bytes);
      }
    }
  }

  async #allocateUnwritten(start: number, lengthBytes: number, how: PlaceHow): Promise<number> {
    const { clusterBytes, map, header, lengthBytes: end } = this.#state;
    if (start >= end) return lengthBytes;
    if (map.hasSubclusters) return this.#reserve(start, lengthBytes, how);
    const m = await this.#lookup.mapping(guestOffset(start), Math.min(lengthBytes, end - start));
    const isOwned = m.kind === 'data' || m.kind === 'opaque' || (m.kind === 'zero' && m.allocated);
    if (isOwned) return alignUp(m.lengthBytes, clusterBytes);
    const place = map.place(start);
    const slice = await this.#tables.sliceFor(place);
    const readsZero = this.#readsZero(m, start, m.lengthBytes);
    const asZeros = header.version >= 3 && readsZero;
    let clusters = 1;
    const wanted = Math.min(
      Math.ceil(m.lengthBytes / clusterBytes),
      map.sliceEntries - place.index,
      asZeros ? Number.POSITIVE_INFINITY : Math.floor(MAX_FILL_BYTES / clusterBytes),
    );
    while (clusters < wanted && this.#needsCluster(slice, place.index + clusters)) clusters++;
    const allocation = await this.#clusters.allocate(start, clusters);
    const target = wholeTarget(allocation, start, clusterBytes);
    // A hole reads as zeros; encrypted, as noise.
    const isPlain = how.isPlain && readsZero && allocation.isFresh && !this.#state.data.isEncrypted;
    await this.#undoingOnFailure(allocation, async () => {
      await this.#takeSpace(allocation, how);
      if (!asZeros && !isPlain)
        await this.#fill({ ...target, isFresh: false }, start, new Uint8Array(0));
    });
    await this.#publish(target, allocation, { asZeros: asZeros && !isPlain });
    return allocation.count * clusterBytes;
  }

  /** Subclusters need no content to have a place: each stays what it is, zero or not there. */
  async #reserve(start: number, lengthBytes: number, how: PlaceHow): Promise<number> {
    const { clusterBytes, map } = this.#state;
    const place = map.place(start);
    const slice = await this.#tables.sliceFor(place);
    const isPlaced = (i: number): boolean => {
      const kind = this.#lookup.kindForChange(slice, place.index + i);
      return kind === 'compressed' || hasPlace(kind);
    };
    if (isPlaced(0)) return clusterBytes;
    const inSlice = map.sliceEntries - place.index;
    const wanted = Math.min(Math.ceil(lengthBytes / clusterBytes), inSlice);
    let clusters = 1;
    while (clusters < wanted && !isPlaced(clusters)) clusters++;
    const allocation = await this.#clusters.allocate(start, clusters);
    const whole = wholeTarget(allocation, start, clusterBytes);
    await this.#undoingOnFailure(allocation, () => this.#takeSpace(allocation, how));
    const target = { ...whole, filled: { from: start, to: start } };
    await this.#publish(target, allocation);
    return allocation.count * clusterBytes;
  }

  /** Of the host; without, the file only has to reach so far: entries point nowhere past its end. */
  async #takeSpace({ first, count }: Allocation, { space }: PlaceHow): Promise<void> {
    const { clusterBytes, clusterFile } = this.#state;
    const end = (first + count) * clusterBytes;
    if (space) await clusterFile.allocate(guestOffset(first * clusterBytes), count * clusterBytes);
    else if (clusterFile.lengthBytes < end) await clusterFile.resize(end);
  }

  async #undoingOnFailure<T>(allocation: Allocation, run: () => Promise<T>): Promise<T> {
    try {
      return await run();
    } catch (error) {
      await this.#clusters.giveBack(allocation);
      throw error;
    }
  }

  /** Writes the guest's bytes and what its clusters held around them. */
  async #fill(target: Target, offset: number, guest: Content): Promise<void> {
    const { data } = this.#state;
    // Encrypted, a hole would read as noise; and parts of sectors are not written.
    const isFresh = target.isFresh && !data.isEncrypted;
    const { from: start, to: end } = target.filled;
    const hostOffset = target.hostOffset + start - target.start;
    const totalBytes = end - start;
    const guestEnd = offset + guest.length;
    assert(offset >= start && guestEnd <= end, 'the guest writes inside of its target');
    if (guest.length < totalBytes && (totalBytes <= ASSEMBLE_BYTES || data.isEncrypted)) {
      const isSparse =
        isFresh && (await this.#isZero(start, offset)) && (await this.#isZero(guestEnd, end));
      if (!isSparse) return this.#fillAssembled(target, offset, guest);
    }
    const [head, tail] = await Promise.all([
      this.#old(start, offset, isFresh),
      this.#old(guestEnd, end, isFresh),
    ]);
    const pieces: Piece[] = [];
    if (head !== null) pieces.push({ guest: start, bytes: head });
    if (guest.length > 0) pieces.push({ guest: offset, bytes: guest });
    if (tail !== null) pieces.push({ guest: guestEnd, bytes: tail });
    await allOf(
      pieces.map((p) =>
        data.write({ guest: p.guest, host: hostOffset + p.guest - start }, p.bytes),
      ),
    );
  }

  /** Puts the whole of the clusters together and writes it at once: one read and one write cost less than three. */
  async #fillAssembled(target: Target, offset: number, guest: Content): Promise<void> {
    if (guest instanceof HostRange) throw notCopied();
    const { data, lengthBytes, request } = this.#state;
    const { from: start, to: end } = target.filled;
    const hostOffset = target.hostOffset + start - target.start;
    const totalBytes = end - start;
    const buffer = this.#buffers.take(totalBytes);
    try {
      const inside = Math.min(totalBytes, Math.max(0, lengthBytes - start));
      buffer.fill(0, inside);
      await request.readGuest(guestOffset(start), buffer.subarray(0, inside));
      buffer.set(guest, offset - start);
      await data.write({ guest: start, host: hostOffset }, buffer);
    } finally {
      this.#buffers.giveBack(buffer);
    }
  }

  /** Whether a guest range is known to read as zeros, also an empty one. */
  async #isZero(from: number, to: number): Promise<boolean> {
    const inside = Math.min(to, this.#state.lengthBytes) - from;
    if (inside <= 0) return true;
    const m = await this.#lookup.mapping(guestOffset(from), inside);
    return m.lengthBytes === inside && this.#readsZero(m, from, inside);
  }

  /** What a guest range reads as now; null when nothing has to be written for it. */
  async #old(from: number, to: number, isFresh: boolean): Promise<Uint8Array | null> {
    if (to <= from) return null;
    if (await this.#isZero(from, to)) return isFresh ? null : new Uint8Array(to - from);
    const bytes = new Uint8Array(to - from);
    const inside = Math.min(to, this.#state.lengthBytes) - from;
    await this.#state.request.readGuest(guestOffset(from), bytes.subarray(0, inside));
    return isFresh && isAllZero(bytes) ? null : bytes;
  }

  #readsZero(m: Mapping, from: number, lengthBytes: number): boolean {
    if (m.kind === 'zero') return true;
    return m.kind === 'unallocated' && (from >= this.#state.backingBytes || lengthBytes === 0);
  }

  /** Maps the target's clusters, tells who follows mappings, and journals. */
  async #publish(
    target: Target,
    allocation: Allocation | null,
    { asZeros = false, isCopy = false }: PublishHow = {},
  ): Promise<void> {
    const { clusterBytes, map, request } = this.#state;
    const place = map.place(target.start);
    const load = (): Promise<CachedTable> => this.#tables.sliceFor(place);
    const slice = await (allocation === null ? load() : this.#undoingOnFailure(allocation, load));
    const changes: Change[] = [...(allocation?.changes ?? [])];
    const { clusters, hostOffset } = target;
    const isRun = clusters > 1 && !asZeros && !map.hasSubclusters;
    if (isRun && map.emptyRun(slice, place.index, clusters) === clusters)
      changes.push(map.mapRun(slice, place.index, clusters, hostOffset));
    else
      for (let i = 0; i < clusters; i++) {
        const old = map.entry(slice, place.index + i);
        const now = targetEntry(this.#state, target, i, old, asZeros);
        if (entryOffset(old.high, old.low) !== entryOffset(now.high, now.low))
          this.#state.unmapEntry(old);
        changes.push(map.setEntry(slice, place.index + i, now));
      }
    request.mappingChanged({
      start: guestOffset(target.start),
      lengthBytes: target.clusters * clusterBytes,
      staysReadable: isCopy,
    });
    await this.#state.record(changes);
  }
}

const isInPlace = (m: Mapping): m is Mapping & { kind: 'data' } => m.kind === 'data' && m.inPlace;
