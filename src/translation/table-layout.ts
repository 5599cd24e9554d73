/**
 * Layout of the translation table's shared memory. Nothing outside `src/translation/` touches it, and here it is
 * touched only through these names and `Atomics`.
 *
 *     words of 32 bits
 *     ┌──────────────┐ 0
 *     │ header       │ 16 words: 0 how many waiters the control plane has  1 blocked workers  2 syncing workers
 *     ├──────────────┤ hazards
 *     │ hazards      │ one record of 16 words (a cache line) for each worker
 *     │              │   0 sequence (odd: in use)  1 view  2 first page  3 last page  4 kind
 *     ├──────────────┤ files
 *     │ host files   │ 4,096 words: descriptor + 1 by host file index, 0 for none
 *     ├──────────────┤ views
 *     │ views        │ 65,536 records of 8 words, by view number (the FUSE node id)
 *     │              │   0 page bits + 1 (0: every request of the view faults), and 256 for each time that it was opened
 *     │              │   1 length, low word  2 length, high word
 *     │              │   3 word0, 4 word1 of the one page of a view with ONE_PAGE
 *     │              │   5 descriptor + 1 to sync for an FSYNC, 0 for none  6 a worker does  7 errno of a sync that has failed
 *     ├──────────────┤ directory
 *     │ directory    │ open-addressed hash of (view, slice): slot + 1, 0 for none; a lookup reads PROBES places
 *     ├──────────────┤ tags
 *     │ slot tags    │ 4 words a slot: 0 view  1 slice  2 referenced by a worker since the last look  3 version (odd: being changed)
 *     ├──────────────┤ firstSlot
 *     │ slots        │ 512 entries of 2 words: the translations of 512 neighbouring pages
 *     └──────────────┘
 *
 * An entry: word0 = READ | WRITE | ZERO | COPY | host file index << 4 | high bits of the host offset << 16; word1 = its low
 * 32 bits. word0 = 0 means fault. With 16 high bits a host offset reaches 256 TiB.
 *
 * The memory is reserved at once and touched as it is used: a mount with few views takes few pages of it.
 */
import { assert } from '../base/assert.ts';
import { isPowerOfTwo } from '../base/range.ts';

export const ENTRIES_PER_SLICE = 512;
export const WORDS_PER_SLICE = ENTRIES_PER_SLICE * 2;
export const SLICE_BYTES = WORDS_PER_SLICE * 4;

export const READ = 1;
export const WRITE = 2;
export const ZERO = 4;
/** A write copies the page: whoever hands one over reads it along (pages-along.ts). */
export const COPY = 8;
export const FILE_SHIFT = 4;
export const FILE_MASK = 0xfff;
export const HIGH_SHIFT = 16;
/** Host offsets from here on have no entry. */
export const HOST_OFFSET_LIMIT = 2 ** 48;
export const MAX_HOST_FILES = FILE_MASK + 1;
/** Added to a descriptor: it reads whole blocks alone (O_DIRECT). */
export const DIRECT_FILE = 2 ** 30;

/** View numbers from here on are not translated: all their requests fault. */
export const MAX_VIEWS = 65_536;
/** Page numbers from here on have no entry. */
export const PAGE_LIMIT = 2 ** 31;
/** `page bits` of a view that is one page whatever its length (raw images). */
export const ONE_PAGE = 64;

/** Places of the directory that a lookup reads. An insertion that finds none free is left out: the slice faults. */
export const PROBES = 8;

export const HEADER_WORDS = 16;
export const WAITERS = 0;
/** Workers that wait for a host file. */
export const BLOCKED = 1;
/** Workers that sync a host file. */
export const SYNCING = 2;

export const HAZARD_WORDS = 16;
export const HAZARD_SEQUENCE = 0;
export const HAZARD_VIEW = 1;
export const HAZARD_FIRST_PAGE = 2;
export const HAZARD_LAST_PAGE = 3;
export const HAZARD_KIND = 4;
/** Kind of a sync, which uses the view and no page of it. */
export const SYNC = 8;
export const SYNC_PAGE = -1;

export const VIEW_WORDS = 8;
export const VIEW_STATE = 0;
export const VIEW_LENGTH_LOW = 1;
export const VIEW_LENGTH_HIGH = 2;
export const VIEW_ENTRY = 3;
export const VIEW_SYNC_FILE = 5;
export const VIEW_SYNC_BUSY = 6;
export const VIEW_SYNC_FAILED = 7;

export const TAG_WORDS = 4;
export const TAG_VIEW = 0;
export const TAG_SLICE = 1;
export const TAG_REFERENCED = 2;
export const TAG_VERSION = 3;

/** Word offsets of the parts. The same numbers are derived on both sides from `TableShape`. */
export interface TableLayout {
  readonly words: Int32Array;
  readonly workers: number;
  readonly slots: number;
  readonly hazards: number;
  readonly files: number;
  readonly views: number;
  readonly directory: number;
  readonly directoryWords: number;
  readonly tags: number;
  readonly firstSlot: number;
}

export interface TableShape {
  readonly workers: number;
  /** Slices that the table holds at once; 4 KiB of memory each. */
  readonly slots: number;
}

/** What crosses to a worker: the memory and the shape that says how to read it. */
export interface SharedTable extends TableShape {
  readonly memory: SharedArrayBuffer;
}

const directoryWordsFor = (slots: number): number => {
  let words = 64;
  while (words < slots * 4) words *= 2;
  return words;
};

const offsetsOf = (shape: TableShape) => {
  const hazards = HEADER_WORDS;
  const files = hazards + shape.workers * HAZARD_WORDS;
  const views = files + MAX_HOST_FILES;
  const directory = views + MAX_VIEWS * VIEW_WORDS;
  const directoryWords = directoryWordsFor(shape.slots);
  const tags = directory + directoryWords;
  const firstSlot = tags + shape.slots * TAG_WORDS;
  const end = firstSlot + shape.slots * WORDS_PER_SLICE;
  return { hazards, files, views, directory, directoryWords, tags, firstSlot, end };
};

/** Zeroed memory for a table: every view unknown, every request a fault. */
export const createSharedTable = (shape: TableShape): SharedTable => ({
  ...shape,
  memory: new SharedArrayBuffer(offsetsOf(shape).end * 4),
});

export const layoutOf = (table: SharedTable): TableLayout => {
  const { end, ...offsets } = offsetsOf(table);
  assert(table.memory.byteLength === end * 4, 'the memory of a translation table fits its shape');
  assert(isPowerOfTwo(offsets.directoryWords), 'the directory is masked: its size is a power of 2');
  const words = new Int32Array(table.memory);
  return { words, workers: table.workers, slots: table.slots, ...offsets };
};

/** Where a lookup of (view, slice) begins in the directory. */
export const directoryStart = (layout: TableLayout, view: number, slice: number): number => {
  let h = Math.imul(slice, 0x9e3779b1) ^ Math.imul(view, 0x85ebca6b);
  h ^= h >>> 15;
  return (Math.imul(h, 0xc2b2ae35) >>> 7) & (layout.directoryWords - 1);
};

/** Word offset of the `probe`th place that a lookup starting at `start` reads. */
export const directoryWord = (layout: TableLayout, start: number, probe: number): number =>
  layout.directory + ((start + probe) & (layout.directoryWords - 1));

export const viewWord = (layout: TableLayout, view: number): number =>
  layout.views + view * VIEW_WORDS;
export const tagWord = (layout: TableLayout, slot: number): number =>
  layout.tags + slot * TAG_WORDS;
export const slotWord = (layout: TableLayout, slot: number): number =>
  layout.firstSlot + slot * WORDS_PER_SLICE;
export const hazardWord = (layout: TableLayout, worker: number): number =>
  layout.hazards + worker * HAZARD_WORDS;

/** Page bits of a view, by the word of its record; negative: every request of it faults. */
export const pageBitsOf = (state: number): number => (state & 0xff) - 1;

/** Of page bits up to 31; a power is a call into C++. */
export const pageBytesOf = (pageBits: number): number => (1 << pageBits) >>> 0;

/** The word of a view that is opened anew. */
export const openedState = (before: number, pageBits: number): number =>
  (before & ~0xff) + 0x100 + pageBits + 1;

/** The word of a view that is closed. */
export const closedState = (before: number): number => before & ~0xff;

/** word0 of an entry. `hostOffset` below HOST_OFFSET_LIMIT, `file` below MAX_HOST_FILES. */
export const entryWord0 = (permissions: number, file: number, hostOffset: number): number =>
  permissions | (file << FILE_SHIFT) | (Math.floor(hostOffset / 2 ** 32) << HIGH_SHIFT);

/** Host offset of an entry, in bytes. */
export const entryHostOffset = (word0: number, word1: number): number =>
  (word0 >>> HIGH_SHIFT) * 2 ** 32 + (word1 >>> 0);

export const entryFile = (word0: number): number => (word0 >>> FILE_SHIFT) & FILE_MASK;
