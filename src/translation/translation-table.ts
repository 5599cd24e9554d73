/**
 * The control plane's side of the translation table: gives and takes translations. It is the only writer of the
 * table, and runs on one thread, so that between two awaits nothing changes but what workers publish.
 *
 * The rules that keep workers safe (each is a step that test/reference/translation leaves out to see it fail):
 *
 * 1. An entry is taken away by storing 0 in word0. It is filled, word1 first and word0 last, only while no worker uses its page. So in one
 *    lookup of a worker an entry is one translation or none: it can go, and no other comes. One that cannot be filled is filled after a later fault.
 * 2. What an entry stood for (a host cluster, a host file, a length) is given up only after `quiesce`.
 * 3. A slot whose slice was evicted is used again only after `quiesce` of that slice's pages.
 * 4. A slice is in the directory last when it comes, and leaves the directory first. A worker that has found the slot before looks at the
 *    version of its tag before and after the rest: it never has the view of one slice and the number of another.
 */
import { LRUCache } from 'lru-cache';
import { assert } from '../base/assert.ts';
import { Admission } from './admission.ts';
import { EntryWriter, type Translation } from './entry-writer.ts';
import { HazardWatch, type PageRange, type WaitOptions } from './hazards.ts';
import type { PageAlong } from './pages-along.ts';
import {
  closedState,
  directoryStart,
  directoryWord,
  ENTRIES_PER_SLICE,
  layoutOf,
  MAX_HOST_FILES,
  MAX_VIEWS,
  ONE_PAGE,
  openedState,
  PAGE_LIMIT,
  PROBES,
  pageBytesOf,
  type SharedTable,
  SLICE_BYTES,
  SYNC_PAGE,
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
  VIEW_SYNC_FAILED,
  VIEW_SYNC_FILE,
  viewWord,
  WORDS_PER_SLICE,
} from './table-layout.ts';

interface OpenView {
  readonly pageBits: number;
  /** Slots by slice, for revoking without a look at each page. */
  readonly slots: Map<number, number>;
}

/** How many slots are kept free ahead, so that a fill finds one without waiting. */
const SPARE_SLOTS = 4;
/** Referenced slices that one eviction passes over before it takes one all the same. */
const SECOND_CHANCES = 64;

const keyOf = (view: number, slice: number): number => view * PAGE_LIMIT + slice;

export class TranslationTable {
  readonly #layout: TableLayout;
  readonly #watch: HazardWatch;
  readonly #entries: EntryWriter;
  readonly #views = new Map<number, OpenView>();
  readonly #free: number[];
  /** Resident slices, least recently filled or used first; values are slots. */
  readonly #resident: LRUCache<number, number>;
  readonly #admission: Admission;
  /** By slot: 1 when a worker has used its slice, as far as was looked. */
  readonly #used: Uint8Array;
  readonly #freeFiles: number[] = [];
  #files = 0;
  #evicting = 0;

  constructor(shared: SharedTable, wait: WaitOptions) {
    this.#layout = layoutOf(shared);
    this.#watch = new HazardWatch(this.#layout, wait);
    this.#entries = new EntryWriter(this.#layout, this.#watch);
    this.#free = Array.from({ length: shared.slots }, (_, i) => shared.slots - 1 - i);
    this.#resident = new LRUCache({ max: Math.max(1, shared.slots) });
    this.#admission = new Admission(shared.slots);
    this.#used = new Uint8Array(shared.slots);
  }

  /** Memory of the translations that are in the table now. */
  get residentBytes(): number {
    return this.#resident.size * SLICE_BYTES;
  }

  /** A number for a host descriptor, with DIRECT_FILE for direct I/O; null when there are too many. Give it back with `removeFile` after `quiesce`. */
  addFile(descriptor: number): number | null {
    const index = this.#freeFiles.pop() ?? (this.#files < MAX_HOST_FILES ? this.#files++ : null);
    if (index === null) return null;
    Atomics.store(this.#layout.words, this.#layout.files + index, descriptor + 1);
    return index;
  }

  /** No entry may name it any more, and no worker use it. */
  removeFile(index: number): void {
    Atomics.store(this.#layout.words, this.#layout.files + index, 0);
    this.#freeFiles.push(index);
  }

  /**
   * Lets workers translate a view. `pageBits` of the unit of mapping, or ONE_PAGE; nothing is mapped yet. False when
   * the view's number is too large for the table: it is served by faults alone.
   */
  openView(view: number, pageBits: number, lengthBytes: number): boolean {
    if (view >= MAX_VIEWS) return false;
    assert(!this.#views.has(view), 'a view is opened once');
    assert(
      pageBits === ONE_PAGE || (pageBits >= 9 && pageBits <= 31),
      'pages are 512 bytes to 2 GiB',
    );
    const { words } = this.#layout;
    const record = viewWord(this.#layout, view);
    Atomics.store(words, record + VIEW_ENTRY, 0);
    Atomics.store(words, record + VIEW_SYNC_FAILED, 0);
    Atomics.store(words, record + VIEW_LENGTH_LOW, lengthBytes | 0);
    Atomics.store(words, record + VIEW_LENGTH_HIGH, Math.floor(lengthBytes / 2 ** 32));
    this.#views.set(view, { pageBits, slots: new Map() });
    const before = Atomics.load(words, record + VIEW_STATE);
    Atomics.store(words, record + VIEW_STATE, openedState(before, pageBits));
    return true;
  }

  /** Every request of the view faults from now on; resolves when no worker uses what it had. Idempotent. */
  async closeView(view: number): Promise<void> {
    const open = this.#views.get(view);
    if (open === undefined) return;
    this.#views.delete(view);
    const { words } = this.#layout;
    const record = viewWord(this.#layout, view);
    Atomics.store(
      words,
      record + VIEW_STATE,
      closedState(Atomics.load(words, record + VIEW_STATE)),
    );
    Atomics.store(words, record + VIEW_ENTRY, 0);
    Atomics.store(words, record + VIEW_SYNC_FILE, 0);
    const slots = [...open.slots];
    for (const [slice, slot] of slots) this.#unlink(view, slice, slot);
    await this.quiesce({ view, firstPage: SYNC_PAGE, lastPage: PAGE_LIMIT });
    for (const [, slot] of slots) this.#free.push(slot);
  }

  /**
   * Workers may answer FSYNCs of the view by a sync of this descriptor, which is closed after `closeView`. Null: no worker does that
   * from now on. One that has begun goes on: the FSYNC was there before the call.
   */
  syncWith(view: number, descriptor: number | null): void {
    if (!this.#views.has(view)) return;
    const file = viewWord(this.#layout, view) + VIEW_SYNC_FILE;
    Atomics.store(this.#layout.words, file, descriptor === null ? 0 : descriptor + 1);
  }

  /** errno of a worker's sync that has failed since the view was opened, also after it was closed; 0 for none. */
  syncFailure(view: number): number {
    if (view >= MAX_VIEWS) return 0;
    return Atomics.load(this.#layout.words, viewWord(this.#layout, view) + VIEW_SYNC_FAILED);
  }

  /** Whether the slice that holds a page is in the table; a one-page view always is. */
  isResident(view: number, page: number): boolean {
    const open = this.#views.get(view);
    if (open === undefined) return false;
    return open.pageBits === ONE_PAGE || open.slots.has(Math.floor(page / ENTRIES_PER_SLICE));
  }

  /** A slice can come in without another one's going. */
  get hasRoom(): boolean {
    return this.#free.length > SPARE_SLOTS;
  }

  /**
   * Whether the slice of a page that has faulted, and is not in the table, is worth its place: always while there is room (admission.ts).
   * Ask once for each fault: one that finds no free slot does not count. `fill` itself takes in what it is given.
   */
  admits(view: number, page: number): boolean {
    const slice = Math.floor(page / ENTRIES_PER_SLICE);
    if (this.hasRoom) return true;
    return this.#free.length > 0 && this.#admission.admits(keyOf(view, slice));
  }

  /**
   * Gives translations to neighbouring pages from `firstPage` on, all of one slice; null leaves one page without.
   * Never waits: without a free slot nothing is given, and one is made free for the next time; a page that a worker uses now is left
   * without. The caller must have looked the translations up in the same turn of the event loop.
   */
  fill(view: number, firstPage: number, translations: readonly (Translation | null)[]): void {
    const open = this.#views.get(view);
    const pages = translations.reduce((sum, t) => sum + (t?.pages ?? 1), 0);
    const lastPage = firstPage + pages - 1;
    if (open === undefined || pages === 0 || lastPage >= PAGE_LIMIT) return;
    if (open.pageBits === ONE_PAGE) {
      assert(firstPage === 0 && pages === 1, 'a one-page view has page 0 alone');
      this.#entries.putOnePage(view, translations[0] ?? null);
      return;
    }
    const slice = Math.floor(firstPage / ENTRIES_PER_SLICE);
    assert(slice === Math.floor(lastPage / ENTRIES_PER_SLICE), 'a fill stays inside one slice');
    const known = open.slots.get(slice);
    const slot = known ?? this.#takeSlot();
    if (slot === null) return;
    const start = slotWord(this.#layout, slot);
    const at = start + (firstPage % ENTRIES_PER_SLICE) * 2;
    const pageBytes = pageBytesOf(open.pageBits);
    if (known !== undefined) {
      this.#entries.put({ view, firstPage, lastPage }, at, translations, pageBytes);
      this.#resident.get(keyOf(view, slice));
      return;
    }
    const { words } = this.#layout;
    words.fill(0, start, start + WORDS_PER_SLICE);
    this.#entries.putUnseen(at, translations, pageBytes);
    this.#link(open, view, slice, slot);
  }

  /** Whether a page has the translation by which a worker has read it, in the same opening of the view. */
  isInForce(view: number, page: number, { state, word0, word1 }: PageAlong): boolean {
    const slot = this.#views.get(view)?.slots.get(Math.floor(page / ENTRIES_PER_SLICE));
    if (slot === undefined) return false;
    const { words } = this.#layout;
    const at = slotWord(this.#layout, slot) + (page % ENTRIES_PER_SLICE) * 2;
    return (
      Atomics.load(words, viewWord(this.#layout, view) + VIEW_STATE) === state &&
      Atomics.load(words, at) === word0 &&
      Atomics.load(words, at + 1) === word1
    );
  }

  /** Takes the translations of pages away. What they stood for may be used until `quiesce`. */
  revoke(range: PageRange): void {
    const open = this.#views.get(range.view);
    if (open === undefined) return;
    if (open.pageBits === ONE_PAGE) {
      Atomics.store(this.#layout.words, viewWord(this.#layout, range.view) + VIEW_ENTRY, 0);
      return;
    }
    const first = Math.floor(range.firstPage / ENTRIES_PER_SLICE);
    const last = Math.floor(range.lastPage / ENTRIES_PER_SLICE);
    if (last - first < open.slots.size) {
      for (let slice = first; slice <= last; slice++) {
        const slot = open.slots.get(slice);
        if (slot !== undefined) this.#revokeInSlot(slot, slice, range);
      }
      return;
    }
    for (const [slice, slot] of open.slots) {
      if (slice >= first && slice <= last) this.#revokeInSlot(slot, slice, range);
    }
  }

  /** Resolves when no worker uses a translation of the range that was taken away before the call; null: any. */
  quiesce(range: PageRange | null): Promise<void> {
    return this.#watch.quiesce(range);
  }

  #revokeInSlot(slot: number, slice: number, range: PageRange): void {
    const start = slice * ENTRIES_PER_SLICE;
    const from = Math.max(range.firstPage, start) - start;
    const to = Math.min(range.lastPage, start + ENTRIES_PER_SLICE - 1) - start;
    const at = slotWord(this.#layout, slot);
    for (let i = from; i <= to; i++) Atomics.store(this.#layout.words, at + i * 2, 0);
    // When nothing of it is left, the next fault finds the slice gone, and fills all of it.
    if (from === 0 && to === ENTRIES_PER_SLICE - 1) this.#evict(range.view, slice, slot);
  }

  #link(open: OpenView, view: number, slice: number, slot: number): void {
    const layout = this.#layout;
    const { words } = layout;
    const start = directoryStart(layout, view, slice);
    for (let probe = 0; probe < PROBES; probe++) {
      const at = directoryWord(layout, start, probe);
      if (Atomics.load(words, at) !== 0) continue;
      const tag = tagWord(layout, slot);
      Atomics.add(words, tag + TAG_VERSION, 1);
      Atomics.store(words, tag + TAG_VIEW, view);
      Atomics.store(words, tag + TAG_SLICE, slice);
      Atomics.add(words, tag + TAG_VERSION, 1);
      Atomics.store(words, tag + TAG_REFERENCED, 0);
      this.#used[slot] = 0;
      open.slots.set(slice, slot);
      this.#resident.set(keyOf(view, slice), slot);
      Atomics.store(words, at, slot + 1);
      return;
    }
    // No worker has seen the slot: it was never in the directory.
    this.#free.push(slot);
  }

  #unlink(view: number, slice: number, slot: number): void {
    const layout = this.#layout;
    const { words } = layout;
    const start = directoryStart(layout, view, slice);
    for (let probe = 0; probe < PROBES; probe++) {
      const at = directoryWord(layout, start, probe);
      if (Atomics.load(words, at) === slot + 1) Atomics.store(words, at, 0);
    }
    this.#views.get(view)?.slots.delete(slice);
    this.#resident.delete(keyOf(view, slice));
  }

  #takeSlot(): number | null {
    const slot = this.#free.pop() ?? null;
    if (this.#free.length < Math.min(SPARE_SLOTS, this.#layout.slots - 1)) this.#evictOne();
    return slot;
  }

  #evictOne(): void {
    if (this.#evicting >= SPARE_SLOTS) return;
    const key = this.#victim();
    const slot = key === null ? undefined : this.#resident.peek(key);
    if (key === null || slot === undefined) return;
    this.#admission.evicted(this.#used[slot] === 1);
    this.#evict(Math.floor(key / PAGE_LIMIT), key % PAGE_LIMIT, slot);
  }

  /** The slot is free when no worker uses its slice any more: mostly at once, so that all faults of one turn find one. */
  #evict(view: number, slice: number, slot: number): void {
    this.#unlink(view, slice, slot);
    const firstPage = slice * ENTRIES_PER_SLICE;
    const pages = { view, firstPage, lastPage: firstPage + ENTRIES_PER_SLICE - 1 };
    if (!this.#watch.isUsed(pages)) {
      this.#free.push(slot);
      return;
    }
    this.#evicting++;
    void this.quiesce(pages).then(() => {
      this.#evicting--;
      this.#free.push(slot);
    });
  }

  // The oldest slice that no worker has used since the last look; each that was used gets a second chance.
  #victim(): number | null {
    const { words } = this.#layout;
    for (let chance = 0; chance < SECOND_CHANCES; chance++) {
      const oldest = this.#resident.rkeys().next();
      if (oldest.done === true) return null;
      const slot = this.#resident.peek(oldest.value);
      if (slot === undefined) return null;
      const referenced = tagWord(this.#layout, slot) + TAG_REFERENCED;
      if (Atomics.exchange(words, referenced, 0) === 0) return oldest.value;
      this.#used[slot] = 1;
      this.#resident.get(oldest.value);
    }
    const oldest = this.#resident.rkeys().next();
    return oldest.done === true ? null : oldest.value;
  }
}
