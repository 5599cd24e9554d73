import assert from 'node:assert/strict';
import { test } from 'node:test';
import { HazardWatch } from '../../../src/translation/hazards.ts';
import { Patience } from '../../../src/translation/patience.ts';
import { Syncs } from '../../../src/translation/syncs.ts';
import { createSharedTable, layoutOf, SYNC_PAGE } from '../../../src/translation/table-layout.ts';
import { TranslationTable } from '../../../src/translation/translation-table.ts';

const PAGE_BITS = 12;
const WAIT = { reportAfterMs: 1000, stuck: () => undefined };

const stand = (workers: number) => {
  const shared = createSharedTable({ workers, slots: 4 });
  const layout = layoutOf(shared);
  const table = new TranslationTable(shared, WAIT);
  for (const view of [2, 3, 4]) {
    table.openView(view, PAGE_BITS, 1 << 20);
    table.syncWith(view, 100 + view);
  }
  const syncs = Array.from({ length: workers }, (_, worker) => new Syncs(layout, worker));
  const of = (worker: number): Syncs => syncs[worker] as Syncs;
  return { layout, table, of };
};

test('half of the workers sync at the same time, and a view is synced by one', () => {
  const { of } = stand(4);
  assert.equal(of(0).begin(2), 102);
  assert.equal(of(1).begin(2), -1, 'the view is being synced');
  assert.equal(of(1).begin(3), 103);
  assert.equal(of(2).begin(4), -1, 'two of four do already');
  of(0).end(0);
  assert.equal(of(2).begin(4), 104);
  of(1).end(0);
  of(2).end(0);
  assert.equal(of(3).begin(2), 102);
});

test('of two workers one is left that waits for nothing; a single worker never syncs', () => {
  const { layout, of } = stand(2);
  const reader = new Patience(layout);
  assert.equal(reader.begin(), true);
  assert.equal(of(0).begin(2), -1, 'the other one waits for a read');
  reader.end();
  assert.equal(of(0).begin(2), 102);
  assert.equal(reader.begin(), false);
  assert.equal(stand(1).of(0).begin(2), -1);
});

test('a sync that has failed is the last one of its view, until the view is opened anew', async () => {
  const { table, of } = stand(2);
  assert.equal(of(0).begin(2), 102);
  of(0).end(5);
  table.syncWith(2, 102);
  assert.equal(of(0).begin(2), -1);
  assert.equal(of(0).begin(3), 103, 'another view is synced');
  of(0).end(0);
  await table.closeView(2);
  assert.equal(table.syncFailure(2), 5, 'it is known when nobody may sync any more');
  table.openView(2, PAGE_BITS, 1 << 20);
  table.syncWith(2, 102);
  assert.equal(of(0).begin(2), 102);
});

test('a sync keeps its view from being closed, and nobody from giving up clusters', async () => {
  const { layout, table, of } = stand(2);
  of(0).begin(2);
  const watch = new HazardWatch(layout, WAIT);
  assert.equal(watch.isUsing(0, null), false);
  assert.equal(watch.isUsing(0, { view: 2, firstPage: 0, lastPage: 1000 }), false);
  assert.equal(watch.isUsing(0, { view: 2, firstPage: SYNC_PAGE, lastPage: 1000 }), true);
  let isClosed = false;
  const closing = table.closeView(2).then(() => {
    isClosed = true;
  });
  await new Promise((resolve) => setTimeout(resolve, 20));
  assert.equal(isClosed, false);
  of(0).end(0);
  await closing;
});
