import assert from 'node:assert/strict';
import { test } from 'node:test';
import { paceOf } from '../../../src/cli/rate.ts';

const elapsedMs = async (work: () => Promise<void>): Promise<number> => {
  const begun = performance.now();
  await work();
  return performance.now() - begun;
};

test('a rate holds what is moved to it, however many move at once; without one nobody waits', async () => {
  const { signal } = new AbortController();
  const paced = paceOf('10M', signal);
  const work = async (): Promise<void> => {
    for (let i = 0; i < 3; i++) await paced(1 << 20);
  };
  const took = await elapsedMs(async () => {
    await Promise.all([work(), work()]);
  });
  // Six times 1 MiB are 600 ms, of which the last one and a burst need not be waited for.
  assert.ok(took > 350, `${took} ms`);
  const free = paceOf(undefined, signal);
  const none = await elapsedMs(async () => {
    for (let i = 0; i < 100; i++) await free(1 << 30);
  });
  assert.ok(none < 300, `${none} ms`);
});

test('who waits is told of the end', async () => {
  const controller = new AbortController();
  const paced = paceOf('1k', controller.signal);
  await paced(1 << 20);
  const waiting = paced(1);
  controller.abort(new Error('ended'));
  await assert.rejects(waiting);
});
