import assert from 'node:assert/strict';
import { test } from 'node:test';
import { IdleWork } from '../../../src/base/idle-work.ts';

const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

test('what is offered is done in its order, and never within the offer', () => {
  const work = new IdleWork();
  const done: number[] = [];
  work.offer(() => done.push(1));
  work.offer(() => {
    done.push(2);
    work.offer(() => done.push(3));
  });
  assert.deepEqual(done, []);
  for (const expected of [[1], [1, 2], [1, 2, 3]]) {
    assert.equal(work.doOne(), true);
    assert.deepEqual(done, expected);
  }
  assert.equal(work.doOne(), false);
});

test('what nobody has done is done by itself, a piece in each turn of the event loop', async () => {
  const work = new IdleWork();
  const done: number[] = [];
  for (const piece of [1, 2, 3]) work.offer(() => done.push(piece));
  assert.equal(work.doOne(), true);
  for (const expected of [2, 3, 3]) {
    await turn();
    assert.equal(done.at(-1), expected);
  }
  work.offer(() => done.push(4));
  await turn();
  assert.deepEqual(done, [1, 2, 3, 4], 'also after there was none');
});
