import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CheckpointSchedule } from '../../../src/block/checkpoint-schedule.ts';
import { TableCache } from '../../../src/block/table-cache.ts';

const cacheOf = (maxBytes: number, loads: number[]): TableCache =>
  new TableCache({
    maxBytes,
    load: async (key) => {
      loads.push(key);
      await new Promise((resolve) => setImmediate(resolve));
      return new Uint8Array(100).fill(key);
    },
  });

test('two misses of one table share one load', async () => {
  const loads: number[] = [];
  const cache = cacheOf(1000, loads);
  const [a, b] = await Promise.all([cache.get(1), cache.get(1)]);
  assert.equal(a, b);
  assert.deepEqual(loads, [1]);
});

test('clean tables are evicted, least recently used first; dirty ones stay until they are written', async () => {
  const loads: number[] = [];
  const cache = cacheOf(300, loads);
  const dirty = await cache.get(1);
  dirty.bytes[0] = 9;
  cache.changed(dirty);
  for (const key of [2, 3, 4, 5]) await cache.get(key);
  assert.equal(cache.peek(1), dirty);
  assert.equal(cache.peek(2), undefined);
  assert.notEqual(cache.peek(5), undefined);
  const [snapshot] = cache.snapshotDirty();
  assert.ok(snapshot !== undefined);
  cache.written(snapshot);
  assert.equal(cache.dirtyBytes, 0);
});

test('a table that changed after its snapshot stays dirty', async () => {
  const cache = cacheOf(1000, []);
  const table = cache.put(7, new Uint8Array(100));
  const [snapshot] = cache.snapshotDirty();
  assert.ok(snapshot !== undefined);
  table.bytes[1] = 5;
  cache.changed(table);
  assert.equal(snapshot.bytes[1], 0, 'a snapshot does not see what comes later');
  cache.written(snapshot);
  assert.equal(cache.dirtyBytes, 100);
});

test('a table that was put while an older one was loading wins', async () => {
  const cache = cacheOf(1000, []);
  const loading = cache.get(3);
  const put = cache.put(3, new Uint8Array(100).fill(99));
  assert.equal(await loading, put);
  assert.equal(cache.peek(3)?.bytes[0], 99);
});

test('checkpoints run one at a time, and callers that come meanwhile share the next', async () => {
  let running = 0;
  let runs = 0;
  const schedule = new CheckpointSchedule({
    run: async () => {
      assert.equal(++running, 1);
      runs++;
      await new Promise((resolve) => setImmediate(resolve));
      running--;
    },
    maxDelayMs: 10_000,
    failed: (error) => assert.fail(String(error)),
  });
  await Promise.all([schedule.request(), schedule.request(), schedule.request()]);
  assert.equal(runs, 2);
  await schedule.request();
  assert.equal(runs, 3);
});

test('who comes when one has ended and the promised one has not begun shares that one', async () => {
  let running = 0;
  let runs = 0;
  let late: Promise<void> | null = null;
  const schedule = new CheckpointSchedule({
    run: async () => {
      assert.equal(++running, 1, 'one at a time');
      runs++;
      await new Promise((resolve) => setImmediate(resolve));
      running--;
    },
    maxDelayMs: 10_000,
    failed: (error) => assert.fail(String(error)),
  });
  const first = schedule.request();
  const second = schedule.request();
  for (let turn = 0; turn < 10; turn++) {
    const asks = async (): Promise<void> => {
      await first;
      for (let i = 0; i < turn; i++) await null;
      await schedule.request();
    };
    late = late === null ? asks() : Promise.all([late, asks()]).then(() => undefined);
  }
  await Promise.all([first, second, late]);
  assert.ok(runs <= 3, `${runs} runs`);
});

test('a checkpoint that fails is told to those who asked, and the next one runs', async () => {
  let fails = true;
  const schedule = new CheckpointSchedule({
    run: async () => {
      if (fails) throw new Error('full');
    },
    maxDelayMs: 10_000,
    failed: () => undefined,
  });
  await assert.rejects(schedule.request());
  fails = false;
  await schedule.request();
  await schedule.close();
});
