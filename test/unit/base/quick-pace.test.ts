import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { QuickPace } from '../../../src/base/quick-pace.ts';

const REST_MS = 40;

const slowly = (pace: QuickPace, ms = 4): void => {
  pace.timed(() => {
    for (const end = performance.now() + ms; performance.now() < end; );
  });
};

const quickly = (pace: QuickPace, times: number): void => {
  for (let i = 0; i < times; i++) pace.timed(() => undefined);
};

test('after a second slow call the long way is taken for a while, and longer after the next', async () => {
  const pace = new QuickPace({ firstRestMs: REST_MS, lastRestMs: 1e6 });
  assert.equal(pace.mayTry(), true);
  slowly(pace);
  assert.equal(pace.mayTry(), true);
  quickly(pace, 5);
  slowly(pace);
  assert.equal(pace.mayTry(), false);
  await sleep(REST_MS + 5);
  assert.equal(pace.mayTry(), true);
  slowly(pace);
  const begun = performance.now();
  while (!pace.mayTry()) await sleep(1);
  assert.ok(performance.now() - begun > REST_MS, 'twice as long');
});

test('slow calls with many quick ones before each do not count, unless they are very slow', () => {
  const pace = new QuickPace({ firstRestMs: REST_MS, lastRestMs: 1e6 });
  for (let i = 0; i < 5; i++) {
    slowly(pace);
    quickly(pace, 30);
    assert.equal(pace.mayTry(), true);
  }
  slowly(pace, 60);
  assert.equal(pace.mayTry(), false);
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
