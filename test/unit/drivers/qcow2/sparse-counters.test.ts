import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Budget, SparseCounters } from '../../../../drivers/qcow2/sparse-counters.ts';

test('counters keep lanes and indexes apart, far beyond 2^32', () => {
  const counters = new SparseCounters(2, 64, new Budget('memory', 1 << 20));
  const far = 2 ** 47 + 63;
  assert.equal(counters.add(far, 0, 3), 0);
  assert.equal(counters.add(far, 1, 5), 0);
  counters.add(far + 1, 0, 7);
  counters.add(0, 0, 1);
  assert.deepEqual([counters.get(far, 0), counters.get(far, 1)], [3, 5]);
  assert.deepEqual([counters.get(far + 1, 0), counters.get(0, 0), counters.get(1, 0)], [7, 1, 0]);
  assert.deepEqual(counters.chunkIndexes(), [0, 2 ** 41, 2 ** 41 + 1]);
});

test('a counter stops at its limit and says what did not fit', () => {
  const counters = new SparseCounters(1, 64, new Budget('memory', 1 << 20));
  assert.equal(counters.add(5, 0, 2, 3), 0);
  assert.equal(counters.add(5, 0, 4, 3), 3);
  assert.equal(counters.get(5, 0), 3);
});

test('scattered indexes spend the budget and then fail, naming what is short', () => {
  const counters = new SparseCounters(3, 2048, new Budget('memory', 1 << 20));
  assert.throws(() => {
    for (let i = 0; i < 1000; i++) counters.add(i * 2 ** 30, 0, 1);
  }, /need more memory than its size explains/);
  assert.ok(counters.chunkIndexes().length < 64);
});
