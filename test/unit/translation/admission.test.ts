import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Lookup } from '../../../src/translation/lookup.ts';
import {
  createSharedTable,
  ENTRIES_PER_SLICE,
  layoutOf,
  READ,
} from '../../../src/translation/table-layout.ts';
import { TranslationTable } from '../../../src/translation/translation-table.ts';

const PAGE = 65_536;
const VIEW = 3;
const SLOTS = 64;
const SLICES = 100_000;

/** A guest, one worker, and a control plane that fills a slice after a fault where the table admits it. */
class Guest {
  faults = 0;
  fills = 0;
  readonly #table: TranslationTable;
  readonly #lookup: Lookup;
  readonly #file: number;

  constructor() {
    const shared = createSharedTable({ workers: 1, slots: SLOTS });
    this.#table = new TranslationTable(shared, { reportAfterMs: 1000, stuck: () => undefined });
    this.#lookup = new Lookup(layoutOf(shared), 0);
    this.#file = this.#table.addFile(5) ?? -1;
    this.#table.openView(VIEW, 16, SLICES * ENTRIES_PER_SLICE * PAGE);
  }

  /** All faults come in one turn of the event loop, as they do where a guest is quick. */
  read(page: number): void {
    if (this.#lookup.begin(VIEW, page * PAGE, 4096, READ)) {
      this.#lookup.end();
      return;
    }
    this.faults++;
    if (!this.#table.admits(VIEW, page)) return;
    this.fills++;
    const first = page - (page % ENTRIES_PER_SLICE);
    const hostOffset = first * PAGE;
    const whole = { permissions: READ, file: this.#file, hostOffset, pages: ENTRIES_PER_SLICE };
    this.#table.fill(VIEW, first, [whole]);
  }

  /** Reads one page in each of so many slices that nobody reads again. */
  jumpAbout(from: number, slices: number): void {
    for (let i = from; i < from + slices; i++) this.read(i * ENTRIES_PER_SLICE + (i % 7));
  }

  /** Reads every page of the slices, in their order; returns how many faults that took. */
  readOn(first: number, slices: number): number {
    const before = this.faults;
    const end = (first + slices) * ENTRIES_PER_SLICE;
    for (let page = first * ENTRIES_PER_SLICE; page < end; page++) this.read(page);
    return this.faults - before;
  }

  readSome(slices: readonly number[], times: number): number {
    const before = this.faults;
    for (let i = 0; i < times; i++)
      for (const slice of slices) this.read(slice * ENTRIES_PER_SLICE + i);
    return this.faults - before;
  }
}

test('a slice comes into the table with its first fault while there is room', () => {
  const guest = new Guest();
  guest.jumpAbout(0, SLOTS / 2);
  assert.equal(guest.fills, SLOTS / 2);
  assert.equal(guest.readOn(SLOTS / 2, 8), 8);
});

test('slices that are gone before they are used are filled no more', () => {
  const guest = new Guest();
  guest.jumpAbout(0, 5000);
  assert.equal(guest.faults, 5000);
  assert.ok(guest.fills < 3 * SLOTS, `${guest.fills} fills`);
});

test('a guest that stays where it is after it has jumped about has its slices with their second fault, and keeps them', () => {
  const guest = new Guest();
  guest.jumpAbout(0, 2000);
  const hot = Array.from({ length: 16 }, (_, i) => 50_000 + i * 7);
  assert.ok(guest.readSome(hot, 20) <= 2 * hot.length);
  for (let round = 0; round < 10; round++) {
    guest.jumpAbout(3000 + round * 200, 200);
    assert.equal(guest.readSome(hot, 1), 0, `round ${round}`);
  }
});

test('a guest that reads on after it has jumped about has one more fault a slice at most, and none when slices are of use again', () => {
  const guest = new Guest();
  guest.jumpAbout(0, 2000);
  const first = guest.readOn(10_000, 200);
  assert.ok(first > 200 && first <= 400, `${first} faults of 200 slices`);
  assert.equal(guest.readOn(20_000, 200), 200);
});
