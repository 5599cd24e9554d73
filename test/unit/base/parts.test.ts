import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { allOf, Parts } from '../../../src/base/parts.ts';

test('parts are all waited for, in their order, and the first that failed is what failed', async () => {
  const ended: number[] = [];
  const part = async (n: number, ms: number, fails = false): Promise<number> => {
    await sleep(ms);
    ended.push(n);
    if (fails) throw new Error(`part ${n}`);
    return n;
  };
  assert.deepEqual(await allOf([part(1, 20), part(2, 1)]), [1, 2]);
  await assert.rejects(allOf([part(3, 20, true), part(4, 1, true), part(5, 30)]), /part 3/);
  assert.deepEqual(ended, [2, 1, 4, 3, 5]);
});

test('a part that fails before the next one is begun fails the results alone', async () => {
  const parts = new Parts<number>();
  parts.add(Promise.reject(new Error('early')));
  await sleep(5);
  parts.add(Promise.resolve(2));
  await parts.settled();
  await assert.rejects(parts.results(), /early/);
  assert.deepEqual(await new Parts().results(), []);
});
