/**
 * The dirty bitmaps that an image keeps (specification: "Bitmaps extension"): from the image to the node when it is opened
 * for writing, and back when it is closed.
 *
 * In the image a bitmap is up to date or marked `in_use`. The mark is there, durably, before the first write of a guest for
 * bitmaps that record (`auto`), and before anything else changes a bitmap; it goes when what is in memory has been
 * saved. A crash in between leaves it: such a bitmap is inconsistent, as it is for QEMU.
 *
 * Saving, in an order that a power cut may end anywhere:
 *
 *     1  bits, tables and a new directory are written to clusters of their own
 *     2  a checkpoint counts these clusters and syncs
 *     3  the header names the new directory (bitmap-extension.ts)
 *     4  what the old directory named is unmapped
 *
 * A cut before 3 leaves the old directory, with its marks, and leaks; after it, leaks.
 */
import { assert, present } from '../../src/base/assert.ts';
import { BlockError, toBlockError } from '../../src/base/block-error.ts';
import { viewOf } from '../../src/base/byte-order.ts';
import { guestOffset } from '../../src/base/units.ts';
import { DirtyBitmap, isGranularity } from '../../src/block/dirty-bitmap.ts';
import { type BitmapStore, TrackedBitmap } from '../../src/block/dirty-tracking.ts';
import type { Allocator } from './allocator.ts';
import { BitmapClusters } from './bitmap-clusters.ts';
import {
  type BitmapExtension,
  bitmapExtensionOf,
  ENTRY_FLAGS_AT,
  entryBytesOf,
  FLAG,
  isUsable,
  MAX_BITMAP_BYTES,
  MAX_BITMAPS,
  MAX_NAME_BYTES,
  readBitmapDirectory,
  type StoredBitmap,
  tableEntriesFor,
} from './bitmap-directory.ts';
import { publishBitmaps } from './bitmap-extension.ts';
import {
  type BitmapFile,
  type BitmapTable,
  readBitmapTable,
  readBits,
  refuseTooLarge,
} from './bitmap-table.ts';
import { BitmapWriter } from './bitmap-writer.ts';
import type { ImageState } from './state.ts';

/** Of all tables together: 32 MiB in memory. QEMU's largest table has a quarter of them. */
const MAX_TABLE_ENTRIES = 4 << 20;

/** What the directory on disk says of a bitmap. */
interface Entry {
  stored: StoredBitmap;
  /** Null when it cannot be followed: an inconsistent bitmap, whose clusters then stay leaked. */
  readonly table: BitmapTable | null;
}

export class PersistentBitmaps implements BitmapStore {
  readonly #state: ImageState;
  readonly #allocator: Allocator;
  readonly #clusters: BitmapClusters;
  readonly #setAutoclear: () => Promise<void>;
  #extension: BitmapExtension | null = null;
  /** In the order of the directory. */
  #entries = new Map<TrackedBitmap, Entry>();
  /** Marking runs one at a time. */
  #marking: Promise<void> = Promise.resolve();

  /** `setAutoclear`: sees to what else the image's autoclear bits say, before anything is written. */
  constructor(state: ImageState, allocator: Allocator, setAutoclear: () => Promise<void>) {
    this.#state = state;
    this.#allocator = allocator;
    this.#clusters = new BitmapClusters(state);
    this.#setAutoclear = setAutoclear;
  }

  /** The image has a directory that its autoclear bit calls valid. */
  get isValid(): boolean {
    return this.#extension !== null;
  }

  /** Before the first request. Errors: kind invalid-image, unsupported; EIO. */
  async open(): Promise<void> {
    const { header, file, request } = this.#state;
    const stored = await readBitmapDirectory(file, header, request.path);
    this.#extension = bitmapExtensionOf(header, file.lengthBytes, request.path);
    if (request.readOnly || this.#extension === null) return;
    this.#clusters.claim([this.#clusters.ofDirectory(this.#extension)], 'the bitmap directory');
    const bitmaps = await this.#read(stored, (bitmap, table) => this.#claimBitmap(bitmap, table));
    for (const bitmap of bitmaps) request.dirtyBitmaps.adopt(bitmap);
  }

  async load(): Promise<readonly TrackedBitmap[]> {
    const { header, file, request } = this.#state;
    if (!request.readOnly) return [...request.dirtyBitmaps.bitmaps].filter((b) => b.persistent);
    return this.#read(await readBitmapDirectory(file, header, request.path), () => true);
  }

  /** Those that record, before the first write. Errors: EIO. */
  holdRecording(): Promise<void> {
    return this.#hold([...this.#entries].filter(([b]) => b.recording).map(([, entry]) => entry));
  }

  /** All of them. Errors: EIO. */
  holdAll(): Promise<void> {
    return this.#hold([...this.#entries.values()]);
  }

  checkNew(name: string, granularityBytes: number): void {
    const { header, request, lengthBytes, clusterBytes } = this.#state;
    const refuse = (message: string, hint?: string): never => {
      const { path } = request;
      throw new BlockError({ kind: 'bad-request', message, hint, path, op: 'bitmap' });
    };
    if (header.version < 3) refuse('cannot store dirty bitmaps: its version is 2');
    const nameBytes = Buffer.byteLength(name);
    if (nameBytes === 0 || nameBytes > MAX_NAME_BYTES)
      refuse(`a bitmap's name has 1 to ${MAX_NAME_BYTES} bytes, not ${nameBytes}`);
    if (!isGranularity(granularityBytes))
      refuse(`granularity ${granularityBytes} is no power of 2 from 512 bytes to 2 GiB`);
    if (lengthBytes === 0) refuse('is empty: it has nothing that a bitmap could stand for');
    const entries = tableEntriesFor(lengthBytes, Math.log2(granularityBytes), clusterBytes);
    if (entries * clusterBytes > MAX_BITMAP_BYTES)
      refuse(
        `a bitmap of granularity ${granularityBytes} would take too much space`,
        'use a larger one',
      );
    if ([...request.dirtyBitmaps.bitmaps].filter((b) => b.persistent).length >= MAX_BITMAPS)
      refuse(`has ${MAX_BITMAPS} dirty bitmaps, as many as can be`);
  }

  async save(): Promise<void> {
    const { dirtyBitmaps } = this.#state.request;
    await this.#marking;
    const kept = [...dirtyBitmaps.bitmaps].filter((bitmap) => bitmap.persistent);
    const isChanged =
      kept.some((bitmap) => this.#isToWrite(bitmap)) ||
      [...this.#entries.keys()].some((bitmap) => !dirtyBitmaps.bitmaps.has(bitmap));
    if (isChanged) await this.#saveAll(kept);
  }

  #isToWrite(bitmap: TrackedBitmap): boolean {
    if (bitmap.inconsistent || bitmap.content.lengthBytes === 0) return false;
    const entry = this.#entries.get(bitmap);
    return entry === undefined || isInUse(entry.stored);
  }

  async #saveAll(kept: readonly TrackedBitmap[]): Promise<void> {
    const { headerChanges, request } = this.#state;
    await this.#setAutoclear();
    const writer = new BitmapWriter(this.#state, this.#allocator);
    const entries = new Map<TrackedBitmap, Entry>();
    let extension: BitmapExtension | null = null;
    try {
      for (const bitmap of kept) {
        const old = this.#entries.get(bitmap);
        if (this.#isToWrite(bitmap)) {
          entries.set(bitmap, await writer.bitmap(bitmap, old?.stored ?? null));
        } else if (old !== undefined) entries.set(bitmap, old);
      }
      const stored = [...entries.values()].map((entry) => entry.stored);
      if (stored.length > 0) extension = await writer.directory(stored);
      await writer.settled();
    } catch (error) {
      await writer.giveBack();
      throw error;
    }
    await publishBitmaps(headerChanges, request.path, extension);
    this.#retireOld(entries);
    this.#entries = entries;
    this.#extension = extension;
  }

  #retireOld(now: ReadonlyMap<TrackedBitmap, Entry>): void {
    const kept = new Set(now.values());
    if (this.#extension !== null) {
      this.#clusters.retire([this.#clusters.ofDirectory(this.#extension)]);
    }
    for (const entry of this.#entries.values()) {
      if (!kept.has(entry))
        this.#clusters.retire(this.#clusters.ofBitmap(entry.stored, entry.table));
    }
  }

  #hold(entries: readonly Entry[]): Promise<void> {
    if (entries.every(({ stored }) => isInUse(stored))) return this.#marking;
    const marking = this.#marking.then(() => this.#mark(entries));
    this.#marking = marking.catch(() => undefined);
    return marking;
  }

  /** In place: each mark is one word, and any part of them may be there after a power cut. */
  async #mark(entries: readonly Entry[]): Promise<void> {
    const wanted = new Set(entries.filter(({ stored }) => !isInUse(stored)));
    if (wanted.size === 0) return;
    await this.#setAutoclear();
    const { file } = this.#state;
    const { directoryOffset } = present(this.#extension, 'a bitmap on disk has a directory');
    let at = directoryOffset;
    for (const entry of this.#entries.values()) {
      if (wanted.has(entry)) {
        const word = new Uint8Array(4);
        viewOf(word).setUint32(0, entry.stored.flags | FLAG.inUse);
        await file.write(guestOffset(at + ENTRY_FLAGS_AT), word);
      }
      at += entryBytesOf(entry.stored);
    }
    await file.flush();
    for (const entry of wanted) {
      entry.stored = { ...entry.stored, flags: entry.stored.flags | FLAG.inUse };
    }
  }

  /** `accept`: whether the clusters of a bitmap may be used; it is inconsistent otherwise. */
  async #read(
    stored: readonly StoredBitmap[],
    accept: (bitmap: StoredBitmap, table: BitmapTable) => boolean,
  ): Promise<TrackedBitmap[]> {
    const place = this.#file;
    this.#refuseManyEntries(stored);
    const tables = new Map<StoredBitmap, BitmapTable | null>();
    for (const bitmap of stored) tables.set(bitmap, await readTableOf(place, bitmap));
    const used: BitmapTable[] = [];
    for (const [bitmap, table] of tables) if (table !== null && isUsable(bitmap)) used.push(table);
    refuseTooLarge(used, place);
    const bitmaps: TrackedBitmap[] = [];
    for (const [bitmap, table] of tables) {
      const isOwn = table !== null && accept(bitmap, table);
      bitmaps.push(await this.#track(bitmap, isOwn ? table : null));
    }
    return bitmaps;
  }

  async #track(stored: StoredBitmap, table: BitmapTable | null): Promise<TrackedBitmap> {
    const granularityBytes = 2 ** stored.granularityBits;
    const { lengthBytes } = this.#state;
    const content = new DirtyBitmap({ lengthBytes, granularityBytes });
    const usable = isUsable(stored);
    assert(!usable || table !== null, 'a bitmap that is used has a table');
    if (usable && table !== null) await readBits(this.#file, table, content);
    const entry: Entry = { stored, table };
    const bitmap = new TrackedBitmap({
      name: stored.name,
      content,
      recording: usable && (stored.flags & FLAG.auto) !== 0,
      persistent: true,
      inconsistent: !usable,
      storage: { hold: () => this.#hold([entry]) },
    });
    if (!this.#state.request.readOnly) this.#entries.set(bitmap, entry);
    return bitmap;
  }

  #refuseManyEntries(stored: readonly StoredBitmap[]): void {
    const entries = stored.reduce((sum, { tableEntries }) => sum + tableEntries, 0);
    if (entries <= MAX_TABLE_ENTRIES) return;
    const message = `the tables of its ${stored.length} dirty bitmaps have ${entries} entries, more than ${MAX_TABLE_ENTRIES}`;
    throw new BlockError({
      kind: 'unsupported',
      message,
      hint: 'remove some of them with qemu-img bitmap --remove, or open the image read-only',
      path: this.#state.request.path,
      op: 'open',
    });
  }

  /** False for an inconsistent one whose clusters are somebody else's too. */
  #claimBitmap(bitmap: StoredBitmap, table: BitmapTable): boolean {
    const runs = this.#clusters.ofBitmap(bitmap, table);
    if (!isUsable(bitmap) && this.#clusters.overlap(runs) !== null) return false;
    this.#clusters.claim(runs, `bitmap '${bitmap.name}'`);
    return true;
  }

  get #file(): BitmapFile {
    const { file, request, clusterBytes } = this.#state;
    return { file, path: request.path, clusterBytes };
  }
}

const isInUse = ({ flags }: StoredBitmap): boolean => (flags & FLAG.inUse) !== 0;

/** Null for one that is inconsistent anyway, and whose table cannot be. */
const readTableOf = async (
  place: BitmapFile,
  bitmap: StoredBitmap,
): Promise<BitmapTable | null> => {
  try {
    return await readBitmapTable(place, bitmap);
  } catch (error) {
    if (!isUsable(bitmap) && toBlockError(error).kind === 'invalid-image') return null;
    throw error;
  }
};
