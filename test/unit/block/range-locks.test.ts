import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { overlaps } from '../../../src/base/range.ts';
import { RangeLocks } from '../../../src/block/range-locks.ts';
import { countOf, SEED } from '../../support/run-parameters.ts';

test('overlapping ranges are held one after the other in the order of asking, others at once', async () => {
  const locks = new RangeLocks();
  const order: string[] = [];
  const a = await locks.acquire({ start: 0, end: 10 });
  const b = locks.acquire({ start: 5, end: 15 }).then((lock) => {
    order.push('b');
    lock.release();
  });
  const c = locks.acquire({ start: 12, end: 20 }).then((lock) => {
    order.push('c');
    lock.release();
  });
  const d = await locks.acquire({ start: 30, end: 40 });
  order.push('d');
  a.release();
  a.release();
  await Promise.all([b, c]);
  assert.deepEqual(order, ['d', 'b', 'c']);
  d.release();
  assert.equal(locks.size, 0);
});

test('no two overlapping ranges are ever held together, and everybody gets his turn', async () => {
  const range = fc.tuple(fc.nat(50), fc.integer({ min: 1, max: 20 }), fc.nat(3));
  await fc.assert(
    fc.asyncProperty(fc.array(range, { minLength: 1, maxLength: 30 }), async (ranges) => {
      const locks = new RangeLocks();
      const held = new Set<{ start: number; end: number }>();
      await Promise.all(
        ranges.map(async ([start, length, ticks]) => {
          const mine = { start, end: start + length };
          const lock = await locks.acquire(mine);
          for (const other of held) assert.ok(!overlaps(other, mine));
          held.add(mine);
          for (let i = 0; i < ticks; i++) await null;
          held.delete(mine);
          lock.release();
        }),
      );
      assert.equal(locks.size, 0);
    }),
    { seed: SEED, numRuns: countOf(100) },
  );
});

test('shared ranges are held together, and a lone one waits for them and they for it', async () => {
  const locks = new RangeLocks();
  const range = { start: 0, end: 10 };
  const first = await locks.acquire(range, { shared: true });
  const second = await locks.acquire(range, { shared: true });
  const order: string[] = [];
  const alone = locks.acquire({ start: 5, end: 6 }).then((lock) => {
    order.push('alone');
    return lock;
  });
  const third = locks.acquire(range, { shared: true }).then((lock) => {
    order.push('third');
    return lock;
  });
  first.release();
  await new Promise(setImmediate);
  assert.deepEqual(order, []);
  second.release();
  (await alone).release();
  (await third).release();
  assert.deepEqual(order, ['alone', 'third']);
  assert.equal(locks.size, 0);
});
