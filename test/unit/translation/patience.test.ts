import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Patience } from '../../../src/translation/patience.ts';
import { createSharedTable, layoutOf } from '../../../src/translation/table-layout.ts';

test('all workers but one may wait for a file at the same time', () => {
  const table = createSharedTable({ workers: 3, slots: 4 });
  const [first, second, third] = Array.from({ length: 3 }, () => new Patience(layoutOf(table)));
  assert.equal(first?.begin(), true);
  assert.equal(second?.begin(), true);
  assert.equal(third?.begin(), false, 'the last one stays free');
  assert.equal(third?.begin(), false, 'and having been refused counts for nothing');
  first?.end();
  assert.equal(third?.begin(), true);
});

test('a single worker never waits', () => {
  const alone = new Patience(layoutOf(createSharedTable({ workers: 1, slots: 4 })));
  assert.equal(alone.begin(), false);
});
