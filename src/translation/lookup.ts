/**
 * The worker's side of the translation table: turns a request into runs of host files, or says that it faults.
 * Allocates nothing per request: the runs lie in arrays that the next request overwrites.
 */
import { Hazard } from './hazards.ts';
import { MAX_PAGE_ALONG_BYTES } from './pages-along.ts';
import {
  COPY,
  DIRECT_FILE,
  directoryStart,
  directoryWord,
  ENTRIES_PER_SLICE,
  entryFile,
  entryHostOffset,
  MAX_VIEWS,
  ONE_PAGE,
  PAGE_LIMIT,
  PROBES,
  pageBitsOf,
  pageBytesOf,
  READ,
  slotWord,
  TAG_REFERENCED,
  TAG_SLICE,
  TAG_VERSION,
  TAG_VIEW,
  type TableLayout,
  tagWord,
  VIEW_ENTRY,
  VIEW_LENGTH_HIGH,
  VIEW_LENGTH_LOW,
  VIEW_STATE,
  viewWord,
  ZERO,
} from './table-layout.ts';

/** A request of more pieces than this faults; 1 MiB of 4 KiB pages, none contiguous, are 257. */
export const MAX_RUNS = 264;
/** `files[i]` of a run that reads as zeros. */
export const ZERO_RUN = -1;

export class Lookup {
  /** Number of runs that the last `begin` found. */
  count = 0;
  /** Some run lies in a file for direct I/O. */
  hasDirect = false;
  /** Host descriptors, with DIRECT_FILE for direct I/O; or ZERO_RUN. */
  readonly files = new Int32Array(MAX_RUNS);
  readonly hostOffsets = new Float64Array(MAX_RUNS);
  readonly lengths = new Int32Array(MAX_RUNS);
  /** Of the page that `beginPage` has found: the words of its view and of its entry. */
  state = 0;
  word0 = 0;
  word1 = 0;
  readonly #layout: TableLayout;
  readonly #hazard: Hazard;
  /** Slot of the slice that the page before lay in: neighbours need no second look into the directory. */
  #slotSlice = -1;
  #slot = -1;

  constructor(layout: TableLayout, worker: number) {
    this.#layout = layout;
    this.#hazard = new Hazard(layout, worker);
  }

  /**
   * Translates `lengthBytes` (1 or more) bytes at `offset` of a view for `permission` (READ or WRITE). True: the runs
   * may be used until `end`. False: the request faults, and nothing is held.
   */
  begin(view: number, offset: number, lengthBytes: number, permission: number): boolean {
    if (view >= MAX_VIEWS) return false;
    const words = this.#layout.words;
    const record = viewWord(this.#layout, view);
    const state = Atomics.load(words, record + VIEW_STATE);
    const bits = pageBitsOf(state);
    if (bits < 0) return false;
    const onePage = bits === ONE_PAGE;
    const pageBytes = pageBytesOf(bits);
    const firstPage = onePage ? 0 : Math.floor(offset / pageBytes);
    const lastPage = onePage ? 0 : Math.floor((offset + lengthBytes - 1) / pageBytes);
    if (lastPage >= PAGE_LIMIT) return false;
    this.#hazard.publish(view, firstPage, lastPage, permission);
    this.#hazard.enter();
    this.count = 0;
    this.hasDirect = false;
    // Looked at again: what was read before `enter` protects nothing.
    const found =
      Atomics.load(words, record + VIEW_STATE) === state &&
      offset + lengthBytes <= this.#length(record) &&
      (onePage
        ? this.#addRun(record + VIEW_ENTRY, 0, offset, lengthBytes, permission)
        : this.#addPages(view, pageBytes, offset, lengthBytes, permission));
    if (!found) this.#hazard.leave();
    return found;
  }

  /**
   * Translates, for reading, all of the page that a write of a part of it copies. True: it is the one run, and may be used until `end`.
   * False: a write of these bytes copies no page that can be read along, and nothing is held.
   */
  beginPage(view: number, offset: number, lengthBytes: number): boolean {
    if (view >= MAX_VIEWS) return false;
    const words = this.#layout.words;
    const record = viewWord(this.#layout, view);
    const state = Atomics.load(words, record + VIEW_STATE);
    const bits = pageBitsOf(state);
    const pageBytes = pageBytesOf(bits);
    if (
      bits < 0 ||
      bits === ONE_PAGE ||
      pageBytes > MAX_PAGE_ALONG_BYTES ||
      lengthBytes >= pageBytes
    )
      return false;
    const page = Math.floor(offset / pageBytes);
    const start = page * pageBytes;
    if (page >= PAGE_LIMIT || offset + lengthBytes > start + pageBytes) return false;
    this.#hazard.publish(view, page, page, READ);
    this.#hazard.enter();
    this.count = 0;
    this.hasDirect = false;
    this.#slotSlice = -1;
    this.state = state;
    const found =
      Atomics.load(words, record + VIEW_STATE) === state &&
      start + pageBytes <= this.#length(record) &&
      this.#addPage(view, page, pageBytes);
    if (!found) this.#hazard.leave();
    return found;
  }

  #addPage(view: number, page: number, pageBytes: number): boolean {
    const words = this.#layout.words;
    const entry = this.#entryOf(view, page);
    if (entry < 0) return false;
    this.word0 = Atomics.load(words, entry);
    this.word1 = Atomics.load(words, entry + 1);
    if ((this.word0 & COPY) === 0) return false;
    const start = page * pageBytes;
    return this.#addRun(entry, start, start, pageBytes, READ) && !this.hasDirect;
  }

  /** The I/O of the runs has ended. */
  end(): void {
    this.#hazard.leave();
  }

  #length(record: number): number {
    const words = this.#layout.words;
    const low = Atomics.load(words, record + VIEW_LENGTH_LOW) >>> 0;
    return Atomics.load(words, record + VIEW_LENGTH_HIGH) * 2 ** 32 + low;
  }

  #addPages(
    view: number,
    pageBytes: number,
    offset: number,
    lengthBytes: number,
    permission: number,
  ): boolean {
    this.#slotSlice = -1;
    const end = offset + lengthBytes;
    for (let at = offset; at < end; ) {
      const page = Math.floor(at / pageBytes);
      const entry = this.#entryOf(view, page);
      if (entry < 0) return false;
      const pageStart = page * pageBytes;
      const length = Math.min(end, pageStart + pageBytes) - at;
      if (!this.#addRun(entry, pageStart, at, length, permission)) return false;
      at += length;
    }
    return true;
  }

  /** Word offset of a page's entry; -1 when its slice is not in the table. */
  #entryOf(view: number, page: number): number {
    const slice = Math.floor(page / ENTRIES_PER_SLICE);
    if (slice !== this.#slotSlice && !this.#findSlot(view, slice)) return -1;
    return slotWord(this.#layout, this.#slot) + (page % ENTRIES_PER_SLICE) * 2;
  }

  #findSlot(view: number, slice: number): boolean {
    const layout = this.#layout;
    const words = layout.words;
    const start = directoryStart(layout, view, slice);
    for (let probe = 0; probe < PROBES; probe++) {
      const slot = Atomics.load(words, directoryWord(layout, start, probe)) - 1;
      if (slot < 0) continue;
      const tag = tagWord(layout, slot);
      // A slot of another view, or slice, may come to be used anew between two loads: only its own slice's workers are waited for.
      const version = Atomics.load(words, tag + TAG_VERSION);
      if (Atomics.load(words, tag + TAG_SLICE) !== slice) continue;
      if (Atomics.load(words, tag + TAG_VIEW) !== view) continue;
      if ((version & 1) !== 0 || Atomics.load(words, tag + TAG_VERSION) !== version) continue;
      // Loaded first: a store to a line that all workers read would make them all miss it.
      if (Atomics.load(words, tag + TAG_REFERENCED) === 0) {
        Atomics.store(words, tag + TAG_REFERENCED, 1);
      }
      this.#slot = slot;
      this.#slotSlice = slice;
      return true;
    }
    return false;
  }

  #addRun(
    entry: number,
    pageStart: number,
    at: number,
    lengthBytes: number,
    permission: number,
  ): boolean {
    const words = this.#layout.words;
    const word0 = Atomics.load(words, entry);
    if ((word0 & permission) === 0) return false;
    const last = this.count - 1;
    if ((word0 & ZERO) !== 0) {
      if (permission !== READ) return false;
      if (last < 0 || this.files[last] !== ZERO_RUN) return this.#push(ZERO_RUN, 0, lengthBytes);
      this.lengths[last] = (this.lengths[last] ?? 0) + lengthBytes;
      return true;
    }
    const file = Atomics.load(words, this.#layout.files + entryFile(word0)) - 1;
    if (file < 0) return false;
    // Of the same translation: none comes in the place of one that a worker may have begun to load.
    const word1 = Atomics.load(words, entry + 1);
    const pageOffset = entryHostOffset(word0, word1);
    const hostOffset = pageOffset + (at - pageStart);
    const before = last < 0 ? 0 : (this.lengths[last] ?? 0);
    const follows =
      last >= 0 &&
      this.files[last] === file &&
      (this.hostOffsets[last] ?? 0) + before === hostOffset;
    if (!follows) return this.#push(file, hostOffset, lengthBytes);
    this.lengths[last] = before + lengthBytes;
    return true;
  }

  #push(file: number, hostOffset: number, lengthBytes: number): boolean {
    const at = this.count;
    if (at === MAX_RUNS) return false;
    this.files[at] = file;
    if (file >= DIRECT_FILE) this.hasDirect = true;
    this.hostOffsets[at] = hostOffset;
    this.lengths[at] = lengthBytes;
    this.count = at + 1;
    return true;
  }
}
