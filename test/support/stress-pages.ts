/**
 * What the pages of the data plane's stress hold, and what may be read of them. Each page has one writer, which counts
 * its versions; each 32-bit word of a page names the page and a version, so that a word of another page, of a freed
 * cluster, or of a lost write shows by itself.
 */

export const STRESS_PAGE_BYTES = 4096;
const WORDS = STRESS_PAGE_BYTES / 4;
const VERSION_BITS = 20;
const VERSION_MASK = 2 ** VERSION_BITS - 1;
/** Each such version is a discard: the page reads as zeros. */
const DISCARD_EVERY = 8;

/** What lies in a cluster that nobody may see. */
export const POISON_BYTE = 0xff;

export const isDiscard = (version: number): boolean => version % DISCARD_EVERY === 0;

/** Both counted by the page's writer: a version is begun before its request is sent, and written when it was answered. */
export class StressVersions {
  readonly shared: SharedArrayBuffer;
  readonly pages: number;
  readonly #words: Int32Array;

  constructor(pages: number, shared = new SharedArrayBuffer(pages * 8)) {
    this.pages = pages;
    this.shared = shared;
    this.#words = new Int32Array(shared);
  }

  begun(page: number): number {
    return Atomics.load(this.#words, page * 2);
  }

  written(page: number): number {
    return Atomics.load(this.#words, page * 2 + 1);
  }

  begin(page: number): number {
    return Atomics.add(this.#words, page * 2, 1) + 1;
  }

  end(page: number): void {
    Atomics.add(this.#words, page * 2 + 1, 1);
  }
}

export const fillPage = (bytes: Uint8Array, page: number, version: number): void => {
  const words = new Int32Array(bytes.buffer, bytes.byteOffset, WORDS);
  words.fill(isDiscard(version) ? 0 : ((page + 1) << VERSION_BITS) | (version & VERSION_MASK));
};

/** Null when a page that was read may look so: versions from `low` (written before) to `high` (begun by now). */
export const wrongOf = (
  bytes: Uint8Array,
  page: number,
  low: number,
  high: number,
): string | null => {
  const words = new Int32Array(bytes.buffer, bytes.byteOffset, WORDS);
  for (let i = 0; i < WORDS; i++) {
    const word = words[i] ?? 0;
    if (i > 0 && word === words[i - 1]) continue;
    const version = word & VERSION_MASK;
    const isRight =
      word === 0
        ? high - (high % DISCARD_EVERY) >= low
        : word >>> VERSION_BITS === page + 1 && version >= low && version <= high;
    if (isRight) continue;
    return `page ${page}, word ${i}: 0x${(word >>> 0).toString(16)} (page ${(word >>> VERSION_BITS) - 1}, version ${version}), versions ${low} to ${high} are possible`;
  }
  return null;
};
