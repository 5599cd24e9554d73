/**
 * Write-zeroes and discard. Whole clusters change their entry; parts of clusters are written with zeros, unless they read
 * so already. A cluster over a backing image reads as zeros afterwards, too: version 3 says so in its entry, version 2 has
 * to write them.
 */
import { alignDown, alignUp, type ByteRange } from '../../src/base/range.ts';
import { guestOffset } from '../../src/base/units.ts';
import {
  copiedEntry,
  entryOffset,
  isCompressed,
  isCopied,
  isSameEntry,
  type L2Entry,
  NO_ENTRY,
  ZERO_ENTRY,
} from './entry.ts';
import type { Change } from './journal-records.ts';
import { type EntryKind, type EntryLookup, hasPlace } from './lookup.ts';
import type { ImageState } from './state.ts';
import { ALL_SUBCLUSTERS, maskOf } from './subclusters.ts';
import type { OwnTables } from './tables.ts';
import type { Writer } from './write.ts';

/** `unmap`: give the space back. `keep`: it stays this image's, where the format can say "zero and allocated". */
export type ZeroMode = 'unmap' | 'keep';

const ZERO_CHUNK_BYTES = 1 << 20;

export class Zeroes {
  readonly #state: ImageState;
  readonly #lookup: EntryLookup;
  readonly #tables: OwnTables;
  readonly #writer: Writer;

  constructor(state: ImageState, lookup: EntryLookup, tables: OwnTables, writer: Writer) {
    this.#state = state;
    this.#lookup = lookup;
    this.#tables = tables;
    this.#writer = writer;
  }

  /** See `DriverInstance.writeZeroes`. */
  async zero(offset: number, lengthBytes: number, mode: ZeroMode): Promise<void> {
    const { clusterBytes, subclusterBytes, lengthBytes: imageEnd } = this.#state;
    const end = offset + lengthBytes;
    if (this.#state.isDataFileRaw && !this.#state.data.isEncrypted)
      return this.#zeroRaw(offset, end, mode);
    const first = alignUp(offset, subclusterBytes);
    // The last cluster of the image is whole when all that the guest sees of it is.
    const last = end === imageEnd ? alignUp(end, clusterBytes) : alignDown(end, subclusterBytes);
    if (last <= first) {
      await this.#zeroPart(offset, end);
      return;
    }
    await this.#zeroPart(offset, first);
    await this.#zeroPart(Math.min(last, end), end);
    for (let at = first; at < last; ) at = await this.#zeroSpan(at, last, mode);
  }

  /** Unmaps everything from `start` (a multiple of the cluster size) to `end`, whatever the backing holds there. */
  async forget(start: number, end: number): Promise<void> {
    for (let at = start; at < end; ) {
      const next = Math.min(end, this.#state.map.sliceEnd(at));
      if (this.#state.map.tableOffset(this.#state.map.place(at).l1Index) !== 0) {
        await this.#changeEntries(at, next, () => NO_ENTRY);
      }
      at = next;
    }
  }

  /** See `DriverInstance.populate`, with zeros. From a cluster's start to a cluster's or the image's end. */
  async populate(offset: number, lengthBytes: number): Promise<void> {
    const { header, locks } = this.#state;
    if (header.version < 3) {
      for (let done = 0; done < lengthBytes; done += ZERO_CHUNK_BYTES) {
        const part = Math.min(ZERO_CHUNK_BYTES, lengthBytes - done);
        await this.#writer.populate(offset + done, new Uint8Array(part));
      }
      return;
    }
    const end = offset + lengthBytes;
    for (let at = offset; at < end; ) {
      await this.#state.admit();
      const next = Math.min(end, this.#state.map.sliceEnd(at));
      const lock = await locks.acquire({ start: at, end: alignUp(next, this.#state.clusterBytes) });
      try {
        await this.#changeEntries(at, next, (part) => this.#zeroWhatIsBelow(part));
      } finally {
        lock.release();
      }
      at = next;
    }
  }

  #zeroWhatIsBelow({ old, kind, mask }: ClusterPart): L2Entry {
    if (!this.#state.map.hasSubclusters) return kind === 'unallocated' ? ZERO_ENTRY : old;
    if (kind === 'compressed') return old;
    return { ...old, zeroes: (old.zeroes | (mask & ~old.allocated)) >>> 0 };
  }

  /** Maps what is not mapped of a range to the same place of a raw data file. Drained. */
  async mapInPlace(start: number, end: number): Promise<void> {
    const { clusterBytes, map } = this.#state;
    const allocated = map.hasSubclusters ? ALL_SUBCLUSTERS : 0;
    for (let at = alignDown(start, clusterBytes); at < end; ) {
      const next = Math.min(end, this.#state.map.sliceEnd(at));
      await this.#state.admit();
      await this.#changeEntries(at, next, ({ old, kind, start: offset }) =>
        kind === 'unallocated' ? { ...copiedEntry(offset), zeroes: 0, allocated } : old,
      );
      at = next;
    }
  }

  /**
   * Whoever reads the data file beside us must see the zeros: they are written there, and the tables stay. What the tables
   * do not map reads as zeros already, unless a backing image shows through.
   */
  async #zeroRaw(start: number, end: number, mode: ZeroMode): Promise<void> {
    const { clusterFile, request } = this.#state;
    const unmap = mode === 'unmap' && request.discard === 'unmap';
    for (let at = start; at < end; ) {
      const m = await this.#lookup.mapping(guestOffset(at), end - at);
      if (m.kind === 'unallocated' && at < this.#state.backingBytes)
        await this.#zeroPart(at, at + m.lengthBytes);
      else await clusterFile.writeZeroes(guestOffset(at), m.lengthBytes, { unmap });
      at += m.lengthBytes;
    }
  }

  async #zeroPart(from: number, to: number): Promise<void> {
    for (let at = from; at < to; ) {
      const m = await this.#lookup.mapping(guestOffset(at), to - at);
      const readsZero =
        m.kind === 'zero' || (m.kind === 'unallocated' && at >= this.#state.backingBytes);
      if (!readsZero)
        await this.#writer.write(at, new Uint8Array(Math.min(m.lengthBytes, ZERO_CHUNK_BYTES)));
      at += readsZero ? m.lengthBytes : Math.min(m.lengthBytes, ZERO_CHUNK_BYTES);
    }
  }

  /** As far as one L2 slice goes, or without a table as far as there is none. Returns where it stopped. */
  async #zeroSpan(start: number, end: number, mode: ZeroMode): Promise<number> {
    const { map, header, locks, backingBytes, clusterBytes } = this.#state;
    const { l1Index } = map.place(start);
    if (map.tableOffset(l1Index) === 0 && start >= backingBytes) {
      return Math.min(end, (l1Index + 1) * map.tableSpanBytes);
    }
    await this.#state.admit();
    const next = Math.min(end, this.#state.map.sliceEnd(start));
    if (header.version < 3 && start < backingBytes) {
      await this.#zeroPart(start, Math.min(next, this.#state.lengthBytes));
      return next;
    }
    if (header.version < 3 && mode === 'keep') {
      await this.#zeroPart(start, Math.min(next, this.#state.lengthBytes));
      return next;
    }
    const lockEnd = alignUp(next, clusterBytes);
    const lock = await locks.acquire({ start: alignDown(start, clusterBytes), end: lockEnd });
    const packed: ByteRange[] = [];
    try {
      await this.#changeEntries(start, next, (part) => {
        if (part.mask === ALL_SUBCLUSTERS) return this.#zeroEntry(part, mode);
        if (!isCompressed(part.old.high)) return this.#zeroSubclusters(part, mode);
        packed.push(part);
        return part.old;
      });
    } finally {
      lock.release();
    }
    for (const part of packed) await this.#zeroPart(part.start, part.end);
    return next;
  }

  #zeroEntry({ old, kind, start }: ClusterPart, mode: ZeroMode): L2Entry {
    const { header, map, backingBytes } = this.#state;
    const hasBelow = start < backingBytes;
    const zero = map.hasSubclusters ? ZERO_SUBCLUSTERS : ZERO_ENTRY;
    if (mode === 'keep' && isCopied(old.high) && hasPlace(kind)) {
      const { low, zeroes } = zero;
      return { ...old, low: (old.low | low) >>> 0, zeroes, allocated: 0 };
    }
    if (map.hasSubclusters ? isSameEntry(old, zero) : kind === 'zero') return old;
    return header.version >= 3 && hasBelow ? zero : NO_ENTRY;
  }

  /** Some subclusters of a cluster; its place goes with the last that holds data. */
  #zeroSubclusters({ old, kind, start, mask }: ClusterPart, mode: ZeroMode): L2Entry {
    const { clusterBytes, backingBytes } = this.#state;
    // Of the cluster: its other subclusters may hide what the backing holds, where these lie past its end.
    const hasBelow = alignDown(start, clusterBytes) < backingBytes;
    const allocated = (old.allocated & ~mask) >>> 0;
    const zeroes = (old.zeroes | mask) >>> 0;
    if (hasPlace(kind) && (allocated !== 0 || mode === 'keep'))
      return { ...old, zeroes, allocated };
    return hasBelow ? { ...NO_ENTRY, zeroes } : NO_ENTRY;
  }

  #partOf(cluster: number, start: number, end: number): ByteRange & { readonly mask: number } {
    const { clusterBytes, subclusterBytes } = this.#state;
    const part = { start: Math.max(start, cluster), end: Math.min(end, cluster + clusterBytes) };
    if (part.end - part.start === clusterBytes) return { ...part, mask: ALL_SUBCLUSTERS };
    const [from, to] = [part.start - cluster, part.end - cluster];
    return { ...part, mask: maskOf(from / subclusterBytes, Math.ceil(to / subclusterBytes)) };
  }

  async #changeEntries(
    start: number,
    end: number,
    change: (part: ClusterPart) => L2Entry,
  ): Promise<void> {
    const { map, clusterBytes, request } = this.#state;
    const place = map.place(start);
    const slice = await this.#tables.sliceFor(place);
    const changes: Change[] = [];
    const left: ByteRange[] = [];
    const first = alignDown(start, clusterBytes);
    for (let i = 0; first + i * clusterBytes < end; i++) {
      const index = place.index + i;
      const cluster = first + i * clusterBytes;
      const part = this.#partOf(cluster, start, end);
      const kind = this.#lookup.kindForChange(slice, index, map.subclusterOf(part.start));
      const old = map.entry(slice, index);
      const now = change({ old, kind, ...part });
      if (isSameEntry(now, old)) continue;
      if (!keepsPlace(old, now)) {
        this.#state.unmapEntry(old);
        if (hasPlace(kind)) addTo(left, cluster, clusterBytes);
      }
      changes.push(map.setEntry(slice, index, now));
    }
    if (changes.length === 0) return;
    request.mappingChanged({ start: guestOffset(start), lengthBytes: end - start });
    await this.#state.record(changes);
    await this.#punchDataFile(left);
  }

  /**
   * Clusters of an external data file that nothing maps any more. Nobody else can be given them, so they need not wait for
   * a checkpoint: before it, the old entries read as the zeros that were asked for.
   */
  async #punchDataFile(runs: readonly ByteRange[]): Promise<void> {
    const { dataFile, request } = this.#state;
    if (dataFile === null || request.discard !== 'unmap') return;
    for (const { start, end } of runs) {
      const bytes = Math.min(end, dataFile.lengthBytes) - start;
      if (bytes > 0) await dataFile.discard(guestOffset(start), bytes);
    }
  }
}

const addTo = (runs: ByteRange[], start: number, lengthBytes: number): void => {
  const last = runs.at(-1);
  if (last?.end === start) runs[runs.length - 1] = { start: last.start, end: start + lengthBytes };
  else runs.push({ start, end: start + lengthBytes });
};

/** A cluster or some subclusters of it. */
interface ClusterPart extends ByteRange {
  readonly old: L2Entry;
  /** Of the cluster; of the first of the subclusters. */
  readonly kind: EntryKind;
  /** Which subclusters; without subclusters, and for all of them, every bit. */
  readonly mask: number;
}

const ZERO_SUBCLUSTERS: L2Entry = { ...NO_ENTRY, zeroes: ALL_SUBCLUSTERS };

// The place of a cluster in a data file may be 0, and then the flag tells that there is one.
const keepsPlace = (old: L2Entry, now: L2Entry): boolean =>
  !isCompressed(old.high) &&
  (isCopied(now.high) || entryOffset(now.high, now.low) !== 0) &&
  entryOffset(old.high, old.low) === entryOffset(now.high, now.low);
