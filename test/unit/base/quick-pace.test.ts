import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { QuickPace } from '../../../src/base/quick-pace.ts';
import { timesWaited } from '../../../src/os/linux.ts';

const REST_MS = 40;

/** A thread, and what waits on it. */
class Thread {
  readonly pace: QuickPace;
  #waited = 0;

  constructor(firstRestMs: number, lastRestMs: number) {
    this.pace = new QuickPace({ firstRestMs, lastRestMs, timesWaited: () => this.#waited });
  }

  /** A call that takes so long: it waits, or other threads have the core. */
  call(ms: number, waits: boolean): void {
    this.pace.timed(() => {
      if (waits) this.#waited++;
      for (const end = performance.now() + ms; performance.now() < end; );
    });
  }

  /** Between two calls. */
  wait(): void {
    this.#waited++;
  }
}

test('after a slow call the long way is taken for a while, and longer after the next', async () => {
  const thread = new Thread(REST_MS, 1e6);
  const { pace } = thread;
  assert.equal(pace.mayTry(), true);
  thread.call(30, true);
  assert.equal(pace.mayTry(), false);
  await sleep(REST_MS + 5);
  assert.equal(pace.mayTry(), true);
  thread.call(30, true);
  const begun = performance.now();
  while (!pace.mayTry()) await sleep(1);
  assert.ok(performance.now() - begun > REST_MS, 'twice as long');
});

test('a thread that was not let run has not waited, unless for very long; what it waits for between two calls does not count', async () => {
  const thread = new Thread(REST_MS, 1e6);
  for (let i = 0; i < 5; i++) {
    thread.call(4, false);
    assert.equal(thread.pace.mayTry(), true);
    thread.wait();
    await sleep(1);
  }
  thread.call(60, false);
  assert.equal(thread.pace.mayTry(), false);
});

test('a little waiting is passed over, and no more of it in quick calls between', () => {
  const thread = new Thread(REST_MS, 1e6);
  const slow: boolean[] = [];
  for (let i = 0; i < 3; i++) {
    for (let quick = 0; quick < 31; quick++) thread.call(0, false);
    thread.call(10, true);
    slow.push(!thread.pace.mayTry());
  }
  assert.deepEqual(slow, [false, false, true]);
});

test('rests do not get longer than the longest, and errors are those of the call', async () => {
  const thread = new Thread(1, 2);
  for (let i = 0; i < 12; i++) thread.call(4, true);
  assert.equal(thread.pace.mayTry(), false);
  await sleep(5);
  assert.equal(thread.pace.mayTry(), true);
  assert.throws(
    () =>
      thread.pace.timed(() => {
        throw new RangeError('of the call');
      }),
    RangeError,
  );
});

test('the kernel tells a thread that waits from one that works', () => {
  const before = timesWaited();
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 5);
  const waited = timesWaited();
  assert.ok(waited > before);
  for (const end = performance.now() + 5; performance.now() < end; );
  assert.equal(timesWaited(), waited);
});
