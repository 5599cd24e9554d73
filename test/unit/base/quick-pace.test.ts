import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { QuickPace } from '../../../src/base/quick-pace.ts';
import { timesWaited } from '../../../src/os/process.ts';

const REST_MS = 40;

/** A thread on a clock of its own, and what it waits for. */
class Thread {
  readonly pace: QuickPace;
  #nowMs = 1000;
  #waited = 0;

  constructor(t: TestContext, firstRestMs: number, lastRestMs: number) {
    t.mock.method(performance, 'now', () => this.#nowMs);
    this.pace = new QuickPace({ firstRestMs, lastRestMs, timesWaited: () => this.#waited });
  }

  /** A call that takes so long: it waits, or other threads have the core. */
  call(ms: number, waits: boolean): void {
    this.pace.timed(() => {
      if (waits) this.#waited++;
      this.#nowMs += ms;
    });
  }

  /** Between two calls. */
  wait(ms: number): void {
    this.#waited++;
    this.#nowMs += ms;
  }
}

test('after a slow call the long way is taken for a while, and longer after the next', (t) => {
  const thread = new Thread(t, REST_MS, 1e6);
  const { pace } = thread;
  assert.equal(pace.mayTry(), true);
  thread.call(30, true);
  assert.equal(pace.mayTry(), false);
  thread.wait(REST_MS);
  assert.equal(pace.mayTry(), true);
  thread.call(30, true);
  thread.wait(REST_MS);
  assert.equal(pace.mayTry(), false, 'twice as long');
  thread.wait(REST_MS);
  assert.equal(pace.mayTry(), true);
  thread.call(0.01, false);
  thread.wait(2000);
  thread.call(30, true);
  thread.wait(REST_MS);
  assert.equal(pace.mayTry(), true, 'a quick one makes good for them');
});

test('a thread that was not let run has not waited, unless for very long; what it waits for between two calls does not count', (t) => {
  const thread = new Thread(t, REST_MS, 1e6);
  for (let i = 0; i < 50; i++) {
    thread.call(4, false);
    assert.equal(thread.pace.mayTry(), true);
    thread.wait(1);
  }
  thread.call(60, false);
  assert.equal(thread.pace.mayTry(), false);
});

test('a little waiting is passed over, so much a second, and no more of it for quick calls between', (t) => {
  const thread = new Thread(t, REST_MS, 1e6);
  const isSlow = (): boolean => {
    for (let quick = 0; quick < 31; quick++) thread.call(0.01, false);
    thread.call(10, true);
    return !thread.pace.mayTry();
  };
  assert.deepEqual([isSlow(), isSlow(), isSlow()], [false, false, true]);
  thread.wait(1000);
  assert.deepEqual([isSlow(), isSlow(), isSlow()], [false, false, true]);
});

test('rests do not get longer than the longest, and errors are those of the call', (t) => {
  const thread = new Thread(t, 1, 2);
  for (let i = 0; i < 12; i++) thread.call(20, true);
  assert.equal(thread.pace.mayTry(), false);
  thread.wait(2);
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
  const waitsOf = (work: () => void): number => {
    const before = timesWaited();
    work();
    return timesWaited() - before;
  };
  const never = new Int32Array(new SharedArrayBuffer(4));
  assert.ok(waitsOf(() => Atomics.wait(never, 0, 0, 5)) > 0);
  // Node's other threads may make it wait for a lock now and then.
  const works = Array.from({ length: 20 }, () =>
    waitsOf(() => {
      for (const end = performance.now() + 2; performance.now() < end; );
    }),
  );
  assert.ok(works.includes(0), String(works));
});
