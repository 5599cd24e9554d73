import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Lookup, ZERO_RUN } from '../../../src/translation/lookup.ts';
import { createSharedSlots, SlotReceiver, SlotTaker } from '../../../src/translation/slots.ts';
import {
  createSharedTable,
  ENTRIES_PER_SLICE,
  layoutOf,
  ONE_PAGE,
  READ,
  SLICE_BYTES,
  WRITE,
  ZERO,
} from '../../../src/translation/table-layout.ts';
import { TranslationTable } from '../../../src/translation/translation-table.ts';

const PAGE = 65_536;
const VIEW = 9;
const WAIT = { reportAfterMs: 1000, stuck: () => undefined };

const fixture = (slots = 8): { table: TranslationTable; lookup: Lookup } => {
  const shared = createSharedTable({ workers: 1, slots });
  return { table: new TranslationTable(shared, WAIT), lookup: new Lookup(layoutOf(shared), 0) };
};

const runs = (lookup: Lookup): (readonly [number, number, number])[] =>
  Array.from(
    { length: lookup.count },
    (_, i) => [lookup.files[i] ?? 0, lookup.hostOffsets[i] ?? 0, lookup.lengths[i] ?? 0] as const,
  );

test('neighbours that are contiguous in a file are one run, others are runs of their own', () => {
  const { table, lookup } = fixture();
  const file = table.addFile(5) ?? -1;
  table.openView(VIEW, 16, 100 * PAGE);
  const at = (hostOffset: number) => ({ permissions: READ, file, hostOffset });
  table.fill(VIEW, 0, [
    at(10 * PAGE),
    at(11 * PAGE),
    at(20 * PAGE),
    { permissions: READ | ZERO, file: 0, hostOffset: 0 },
  ]);
  assert.ok(lookup.begin(VIEW, 100, 4 * PAGE - 200, READ));
  assert.deepEqual(runs(lookup), [
    [5, 10 * PAGE + 100, 2 * PAGE - 100],
    [5, 20 * PAGE, PAGE],
    [ZERO_RUN, 0, PAGE - 100],
  ]);
  lookup.end();
});

test('a page without the permission, past the end, or unknown, faults the whole request', () => {
  const { table, lookup } = fixture();
  const file = table.addFile(5) ?? -1;
  assert.ok(!lookup.begin(VIEW, 0, 10, READ), 'an unknown view');
  table.openView(VIEW, 16, 2 * PAGE - 100);
  table.fill(VIEW, 0, [
    { permissions: READ, file, hostOffset: 0 },
    { permissions: READ | WRITE, file, hostOffset: PAGE },
  ]);
  assert.ok(!lookup.begin(VIEW, PAGE - 10, 20, WRITE));
  assert.ok(!lookup.begin(VIEW, 2 * PAGE - 110, 20, READ), 'past the end of the view');
  assert.ok(lookup.begin(VIEW, 2 * PAGE - 120, 20, WRITE));
  lookup.end();
  table.revoke({ view: VIEW, firstPage: 1, lastPage: 1 });
  assert.ok(!lookup.begin(VIEW, PAGE, 10, READ));
});

test('host offsets above 4 GiB and view sizes above 2^32 are kept', () => {
  const { table, lookup } = fixture();
  const file = table.addFile(3) ?? -1;
  table.openView(VIEW, ONE_PAGE, 2 ** 45);
  table.fill(VIEW, 0, [{ permissions: READ | WRITE, file, hostOffset: 2 ** 41 + 4096 }]);
  assert.ok(lookup.begin(VIEW, 2 ** 44, 4096, WRITE));
  assert.deepEqual(runs(lookup), [[3, 2 ** 44 + 2 ** 41 + 4096, 4096]]);
  lookup.end();
});

test('a full table makes room, and pages that workers use stay longer', async () => {
  const slots = 8;
  const { table, lookup } = fixture(slots);
  const file = table.addFile(3) ?? -1;
  table.openView(VIEW, 16, 1000 * ENTRIES_PER_SLICE * PAGE);
  const fill = (slice: number): void => {
    const translation = { permissions: READ, file, hostOffset: slice * PAGE };
    table.fill(VIEW, slice * ENTRIES_PER_SLICE, [translation]);
  };
  const hits = (slice: number): boolean => {
    const found = lookup.begin(VIEW, slice * ENTRIES_PER_SLICE * PAGE, 512, READ);
    if (found) lookup.end();
    return found;
  };
  for (let slice = 0; slice < 100; slice++) {
    fill(slice);
    await new Promise((resolve) => setImmediate(resolve));
    hits(0);
    if (!hits(0)) fill(0);
    assert.ok(table.residentBytes <= slots * SLICE_BYTES);
  }
  assert.ok(hits(99));
  assert.ok(!hits(50), 'what nobody used is gone');
});

test('a slot goes from worker to control plane and back, and the sleeper is rung once', () => {
  const shared = createSharedSlots({ slots: 4, payloadBytes: 4096, addressOf: () => 16 });
  assert.equal((shared.firstByte + 16) % 4096, 0);
  const taker = new SlotTaker(shared);
  const receiver = new SlotReceiver(shared);
  receiver.sleep();
  const a = taker.take();
  const b = taker.take();
  assert.notEqual(a, b);
  assert.equal(taker.handOver(a), true);
  assert.equal(taker.handOver(b), false, 'it is awake already');
  assert.equal(receiver.next(), a);
  assert.equal(receiver.next(), b);
  assert.equal(receiver.next(), -1);
  receiver.release(a);
  assert.equal(taker.take(), a, 'the lowest free slot is taken');
});

test('a page that a worker uses keeps what is right, and is left empty where another translation was to come', () => {
  const shared = createSharedTable({ workers: 2, slots: 4 });
  const table = new TranslationTable(shared, WAIT);
  const file = table.addFile(70) ?? -1;
  table.openView(VIEW, 16, 1 << 30);
  table.fill(VIEW, 0, [{ permissions: READ, file, hostOffset: 0, pages: 512 }]);
  const slow = new Lookup(layoutOf(shared), 0);
  const quick = new Lookup(layoutOf(shared), 1);
  const has = (page: number): boolean => {
    const found = quick.begin(VIEW, page * PAGE, 4096, READ);
    if (found) quick.end();
    return found;
  };
  assert.ok(slow.begin(VIEW, 0, PAGE + 1, READ));
  table.fill(VIEW, 0, [{ permissions: READ, file, hostOffset: 0, pages: 3 }]);
  assert.deepEqual([0, 1, 2].map(has), [true, true, true]);
  table.fill(VIEW, 0, [{ permissions: READ, file, hostOffset: 9 * PAGE, pages: 3 }]);
  assert.deepEqual([0, 1, 2].map(has), [false, false, true]);
  slow.end();
  table.fill(VIEW, 0, [{ permissions: READ, file, hostOffset: 9 * PAGE, pages: 3 }]);
  assert.deepEqual([0, 1, 2].map(has), [true, true, true]);
});
