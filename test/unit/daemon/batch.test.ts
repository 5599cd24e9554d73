import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Batch } from '../../../src/daemon/batch.ts';

test('what is asked in one turn goes in one question, and everybody has their own answer', async () => {
  const questions: (readonly number[])[] = [];
  const batch = new Batch<number, string>(async (items) => {
    questions.push(items);
    return items.map((item) => `answer ${item}`);
  });
  const first = await Promise.all([1, 2, 3].map((item) => batch.add(item)));
  assert.deepEqual(first, ['answer 1', 'answer 2', 'answer 3']);
  assert.equal(await batch.add(4), 'answer 4');
  assert.deepEqual(questions, [[1, 2, 3], [4]]);
});

test('a question that fails fails for all of its items, and for no later one', async () => {
  let fails = true;
  const batch = new Batch<number, number>(async (items) => {
    if (fails) throw new RangeError('nobody answers');
    return items;
  });
  const outcomes = await Promise.allSettled([batch.add(1), batch.add(2)]);
  assert.deepEqual(
    outcomes.map((o) => o.status),
    ['rejected', 'rejected'],
  );
  fails = false;
  assert.equal(await batch.add(3), 3);
});
