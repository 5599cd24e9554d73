/**
 * What an allocating write puts into its target's clusters: the guest's bytes, and around them what was read there before.
 *
 * Owns how: which zeros need not be written because the place reads so already, and whether pieces are put together first.
 * Entries are not changed here, so a failure leaves the old content. Whoever asks holds the clusters' range lock.
 */
import { assert } from '../../src/base/assert.ts';
import { allOf } from '../../src/base/parts.ts';
import { isAllZero } from '../../src/base/range.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { Mapping } from '../../src/block/driver.ts';
import { type Content, HostRange, notCopied } from '../../src/block/host-range.ts';
import type { BufferPool } from './buffer-pool.ts';
import { entryOffset } from './entry.ts';
import type { EntryLookup } from './lookup.ts';
import type { ImageState } from './state.ts';
import { runsOf } from './subclusters.ts';
import type { OwnTables } from './tables.ts';
import { filledMask, keptMask, type Target } from './write-target.ts';

/** Pieces up to this are put together and written at once: one system call costs more than copying them. */
const ASSEMBLE_BYTES = 256 << 10;

interface Piece {
  /** Guest offset. */
  readonly guest: number;
  readonly bytes: Content;
}

export interface TargetContentParts {
  readonly state: ImageState;
  readonly lookup: EntryLookup;
  readonly tables: OwnTables;
  readonly buffers: BufferPool;
}

export class TargetContent {
  readonly #state: ImageState;
  readonly #lookup: EntryLookup;
  readonly #tables: OwnTables;
  readonly #buffers: BufferPool;

  constructor({ state, lookup, tables, buffers }: TargetContentParts) {
    this.#state = state;
    this.#lookup = lookup;
    this.#tables = tables;
    this.#buffers = buffers;
  }

  /**
   * Writes the guest's bytes and what its clusters held around them. `offset`: guest offset of the bytes, which lie inside of
   * what the target fills; there may be none. Errors: EIO, ENOSPC; that of `notCopied` for bytes of a host file that have to be
   * put together with others.
   */
  async fill(target: Target, offset: number, guest: Content): Promise<void> {
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

  /**
   * Brings the subclusters that the guest does not write from a shared cluster to the new one; nobody writes them in place.
   * Errors: EIO, ENOSPC.
   */
  async copyKept(target: Target): Promise<void> {
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

  /** Whether a guest range that `m` maps is known to read as zeros, also an empty one. */
  readsZero(m: Mapping, from: number, lengthBytes: number): boolean {
    if (m.kind === 'zero') return true;
    return m.kind === 'unallocated' && (from >= this.#state.backingBytes || lengthBytes === 0);
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
    return m.lengthBytes === inside && this.readsZero(m, from, inside);
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
}
