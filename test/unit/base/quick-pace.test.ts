import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { QuickPace } from '../../../src/base/quick-pace.ts';

const REST_MS = 40;

const slowly = (pace: QuickPace): void => {
  pace.timed(() => {
    for (const end = performance.now() + 4; performance.now() < end; );
  });
};

test('after a slow call the long way is taken for a while, and longer after the next', async () => {
  const pace = new QuickPace({ firstRestMs: REST_MS, lastRestMs: 1e6 });
  assert.equal(pace.mayTry(), true);
  slowly(pace);
  assert.equal(pace.mayTry(), false);
  await sleep(REST_MS + 5);
  assert.equal(pace.mayTry(), true);
  slowly(pace);
  const begun = performance.now();
  while (!pace.mayTry()) await sleep(1);
  assert.ok(performance.now() - begun > REST_MS, 'twice as long');
});

test('rests do not get longer than the longest, and errors are those of the call', async () => {
  const pace = new QuickPace({ firstRestMs: 1, lastRestMs: 2 });
  for (let i = 0; i < 12; i++) slowly(pace);
  await sleep(5);
  assert.equal(pace.mayTry(), true);
  assert.throws(
    () =>
      pace.timed(() => {
        throw new RangeError('of the call');
      }),
    RangeError,
  );
});
