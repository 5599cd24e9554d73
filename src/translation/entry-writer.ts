/**
 * The entries of the translation table, as the control plane writes them (rule 1 of translation-table.ts): an entry is filled, word1 first
 * and word0 last, only while no worker uses its page.
 */
import type { HazardWatch, PageRange } from './hazards.ts';
import {
  entryWord0,
  HOST_OFFSET_LIMIT,
  type TableLayout,
  VIEW_ENTRY,
  viewWord,
  ZERO,
} from './table-layout.ts';

export interface Translation {
  /** READ, WRITE, ZERO and COPY of table-layout.ts, added; 0 for none. */
  readonly permissions: number;
  /** From `addFile`; 0 with ZERO. */
  readonly file: number;
  /** Of the page's first byte. Pages from HOST_OFFSET_LIMIT on are left without a translation. */
  readonly hostOffset: number;
  /** Neighbouring pages that lie one after the other in the file; 1 when left out. */
  readonly pages?: number;
}

const NO_TRANSLATION: Translation = { permissions: 0, file: 0, hostOffset: 0 };

/** Of a fill, by its place in it. */
interface ChangedEntry {
  readonly index: number;
  readonly word0: number;
  readonly word1: number;
}

/** word0 and word1 of a page; `inRun`: bytes from the translation's first one. Both 0 where it has no entry. */
const entryWords = (
  { permissions, file, hostOffset: first }: Translation,
  inRun: number,
): readonly [number, number] => {
  const hostOffset = (permissions & ZERO) === 0 ? first + inRun : 0;
  if (permissions === 0 || hostOffset >= HOST_OFFSET_LIMIT) return [0, 0];
  return [entryWord0(permissions, file, hostOffset), hostOffset | 0];
};

/** On the control plane's thread, and in one turn of its event loop each. */
export class EntryWriter {
  readonly #layout: TableLayout;
  readonly #watch: HazardWatch;

  constructor(layout: TableLayout, watch: HazardWatch) {
    this.#layout = layout;
    this.#watch = watch;
  }

  /**
   * Puts translations into the entries of a range of pages, the first of which is at word `at`, where workers may find them. A page that one
   * uses now keeps what is right, and is left empty where another translation was to come.
   */
  put(
    range: PageRange,
    at: number,
    translations: readonly (Translation | null)[],
    pageBytes: number,
  ): void {
    const { view, firstPage } = range;
    const changed = this.#takeAwayOthers(at, translations, pageBytes);
    if (changed.length === 0) return;
    // Whoever begins after this look loads no entry that is still to be stored, or all of it.
    const isUsed = this.#watch.isUsed(range);
    for (const { index, word0, word1 } of changed) {
      const page = firstPage + index;
      if (isUsed && this.#watch.isUsed({ view, firstPage: page, lastPage: page })) continue;
      this.#store(at + index * 2, word0, word1);
    }
  }

  /**
   * Puts the one translation of a view into its record. All workers use its page, and word1 is 0 whichever file it lies in: where that
   * does not change, no two translations make a third.
   */
  putOnePage(view: number, translation: Translation | null): void {
    const { words } = this.#layout;
    const at = viewWord(this.#layout, view) + VIEW_ENTRY;
    const [word0, word1] = entryWords(translation ?? NO_TRANSLATION, 0);
    const isSame = Atomics.load(words, at + 1) === word1;
    if (isSame && Atomics.load(words, at) === word0) return;
    Atomics.store(words, at, 0);
    if (isSame || !this.#watch.isUsed({ view, firstPage: 0, lastPage: 0 }))
      this.#store(at, word0, word1);
  }

  /**
   * As `put`, into a slot that is all zeros and that no worker can find: ordinary stores, of which the atomic one that puts the slot
   * into the directory comes after all.
   */
  putUnseen(at: number, translations: readonly (Translation | null)[], pageBytes: number): void {
    const { words } = this.#layout;
    let word = at;
    for (const translation of translations) {
      const { permissions, file, hostOffset: first, pages = 1 } = translation ?? NO_TRANSLATION;
      if (permissions === 0) {
        word += 2 * pages;
        continue;
      }
      const step = (permissions & ZERO) === 0 ? pageBytes : 0;
      let hostOffset = step === 0 ? 0 : first;
      for (let i = 0; i < pages; i++, word += 2, hostOffset += step) {
        if (hostOffset >= HOST_OFFSET_LIMIT) continue;
        words[word + 1] = hostOffset | 0;
        words[word] = entryWord0(permissions, file, hostOffset);
      }
    }
  }

  /** Empties the entries that are to be others, and says what they are to be; what is right stays, whoever uses it. */
  #takeAwayOthers(
    at: number,
    translations: readonly (Translation | null)[],
    pageBytes: number,
  ): readonly ChangedEntry[] {
    const { words } = this.#layout;
    const changed: ChangedEntry[] = [];
    let index = 0;
    for (const translation of translations) {
      const run = translation ?? NO_TRANSLATION;
      for (let inRun = 0; inRun < (run.pages ?? 1); inRun++, index++) {
        const [word0, word1] = entryWords(run, inRun * pageBytes);
        const word = at + index * 2;
        const before = Atomics.load(words, word);
        if (before === word0 && (before === 0 || Atomics.load(words, word + 1) === word1)) continue;
        Atomics.store(words, word, 0);
        if (word0 !== 0) changed.push({ index, word0, word1 });
      }
    }
    return changed;
  }

  /** In an entry whose word0 is 0. */
  #store(at: number, word0: number, word1: number): void {
    const { words } = this.#layout;
    Atomics.store(words, at + 1, word1);
    Atomics.store(words, at, word0);
  }
}
