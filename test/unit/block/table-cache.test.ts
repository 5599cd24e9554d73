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

/** What was evicted in this turn is gone then. */
const turnEnded = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** Its tables can be read without waiting. */
const quickCacheOf = (
  maxBytes: number,
  content: Map<number, number>,
  loads: number[],
): TableCache =>
  new TableCache({
    maxBytes,
    load: async () => assert.fail('nothing waits'),
    atOnce: {
      tableBytes: 100,
      load: (key, bytes) => {
        loads.push(key);
        bytes.fill(content.get(key) ?? key);
        return true;
      },
    },
  });

test('what a full cache is asked for once drives nothing out and takes no memory', () => {
  const loads: number[] = [];
  const cache = quickCacheOf(400, new Map(), loads);
  for (const key of [1, 2, 3]) cache.glance(key);
  const passing = [11, 12, 13, 14, 15].map((key) => {
    const table = cache.glance(key);
    assert.equal(table?.bytes[99], key);
    assert.equal(table?.view.getUint8(0), key);
    return table;
  });
  assert.equal(new Set(passing).size, 1, 'one place for all of them');
  loads.length = 0;
  for (const key of [1, 2, 3]) assert.equal(cache.glance(key)?.bytes[0], key);
  assert.deepEqual(loads, []);
  assert.equal(cache.bytes, 400);
});

test('what a full cache is asked for a second time comes in', async () => {
  const loads: number[] = [];
  const cache = quickCacheOf(400, new Map(), loads);
  for (const key of [1, 2, 3, 11, 12, 11, 13, 14]) cache.glance(key);
  await turnEnded();
  loads.length = 0;
  assert.equal(cache.glance(11)?.bytes[0], 11);
  assert.deepEqual(loads, [], 'it stays');
  assert.equal(cache.glance(1)?.bytes[0], 1);
  assert.deepEqual(loads, [1], 'in the place of the one that was not used for longest');
});

test('a glance shows what a table holds, also when it was changed after a glance before', async () => {
  const content = new Map<number, number>();
  const cache = quickCacheOf(400, content, []);
  for (const key of [1, 2, 3]) cache.glance(key);
  assert.equal(cache.glance(9)?.bytes[0], 9);
  const table = cache.getAtOnce(9);
  assert.ok(table !== undefined);
  table.bytes.fill(77);
  cache.changed(table);
  const [snapshot] = cache.snapshotDirty();
  assert.ok(snapshot !== undefined);
  content.set(9, 77);
  cache.written(snapshot);
  for (const key of [4, 5, 6]) cache.getAtOnce(key);
  await turnEnded();
  assert.equal(cache.peek(9), undefined, 'it has gone');
  assert.equal(cache.glance(9)?.bytes[0], 77);
});

test('a glance shows nothing of what lay in a place before something else was put there', () => {
  const content = new Map<number, number>();
  const cache = quickCacheOf(400, content, []);
  for (const key of [1, 2, 3]) cache.glance(key);
  const ways = [(key: number) => cache.drop(key), () => cache.clear()];
  for (const [i, forget] of ways.entries()) {
    const key = 20 + i;
    assert.equal(cache.glance(key)?.bytes[0], key);
    content.set(key, 100 + i);
    forget(key);
    for (const other of [1, 2, 3]) cache.getAtOnce(other);
    assert.equal(cache.glance(key)?.bytes[0], 100 + i);
  }
});

test('a glance at what has to be waited for says so, and nothing of it stays', () => {
  let isThere = true;
  const cache = new TableCache({
    maxBytes: 400,
    load: async () => assert.fail('nobody asks'),
    atOnce: {
      tableBytes: 100,
      load: (key, bytes) => {
        bytes.fill(key);
        return isThere;
      },
    },
  });
  for (const key of [1, 2, 3, 29]) cache.glance(key);
  isThere = false;
  assert.equal(cache.glance(30), undefined);
  assert.equal(cache.glance(30), undefined);
  assert.equal(cache.glance(29), undefined, 'it was overwritten');
  assert.equal(cache.glance(31), undefined);
  isThere = true;
  assert.equal(cache.glance(31)?.bytes[0], 31);
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
  await turnEnded();
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

test('changes of one table meet in it, also when others evict it between its being got and being changed', async () => {
  const cache = new TableCache({
    maxBytes: 300,
    load: async () => assert.fail('all is loaded at once'),
    atOnce: { tableBytes: 100, load: () => true },
  });
  const got = async (key: number) => cache.getAtOnce(key);
  const change = async (key: number, index: number): Promise<void> => {
    const table = await got(key);
    assert.ok(table !== undefined);
    table.bytes[index] = 1;
    cache.changed(table);
  };
  await Promise.all([1, 2, 3, 4, 5, 1].map((key, index) => change(key, index)));
  const [first] = cache.snapshotDirty();
  assert.deepEqual([...(first?.bytes.subarray(0, 6) ?? [])], [1, 0, 0, 0, 0, 1]);
});

test('a table that was evicted is read again once the turn has ended', async () => {
  const loads: number[] = [];
  const cache = cacheOf(100, loads);
  const old = await cache.get(1);
  await cache.get(2);
  assert.equal(cache.peek(1), old);
  await turnEnded();
  assert.equal(cache.peek(1), undefined);
  assert.notEqual(await cache.get(1), old);
  assert.deepEqual(loads, [1, 2, 1]);
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
