/** A sync of a real worker that fails: its FSYNC has the error, and every flush after it. The descriptor that it syncs cannot be synced. */
import assert from 'node:assert/strict';
import { closeSync, openSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { setImmediate } from 'node:timers/promises';
import type { HandlerContext } from '../../mount/kernel/context.ts';
import { fsync } from '../../mount/kernel/data-requests.ts';
import { present } from '../../src/base/assert.ts';
import { toBlockError } from '../../src/base/block-error.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { DriverDescriptor } from '../../src/block/driver.ts';
import { COUNTER, sumCounter } from '../../src/translation/counters.ts';
import { delayedFile } from '../support/delayed-file.ts';
import { imageView } from '../support/image-view.ts';
import { type Cleanup, scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';
import { viewTranslations } from '../support/view-translations.ts';
import { StandIn, startWorkers } from '../support/worker-stand.ts';

const VIEW = 7;
const WORKERS = 2;
const BYTES = 64 << 10;

/** `fails`: fdatasync of what workers sync is EINVAL. */
const standOf = async (t: Cleanup, fails: boolean) => {
  const directory = await scratchDirectory(t);
  const path = join(directory, 'disk.raw');
  await writeFile(path, new Uint8Array(BYTES));
  const unsyncable = openSync('/dev/null', 'r');
  const plain = delayedFile(path, { before: async () => undefined });
  const file: DriverDescriptor = {
    ...plain,
    openPath: async (request) => {
      const inner = present(await plain.openPath?.(request), 'it opens paths');
      return fails ? Object.create(inner, { syncFd: { value: unsyncable } }) : inner;
    },
  };
  const graph = await testGraph({ directory, file });
  const view = imageView(graph, { path, format: 'raw' });
  const { table, translations, entry } = viewTranslations(view, VIEW, WORKERS);
  const context = { directory: { byNodeId: () => entry }, translations, passthrough: null };
  const failures: string[] = [];
  let served = 0;
  let before: () => Promise<void> = async () => undefined;
  const workers = startWorkers({
    workers: WORKERS,
    table,
    faulted: async (request, answer) => {
      await before();
      try {
        await fsync(request, context as unknown as HandlerContext);
      } catch (error) {
        failures.push(toBlockError(error).errno);
      }
      answer(0);
      served++;
    },
  });
  const kernel = new StandIn(workers.ends[0] ?? -1, 0);
  /** One FSYNC, which the engine serves after `first`. */
  const fsyncs = async (first: () => Promise<void> = async () => undefined): Promise<void> => {
    before = first;
    const done = served + sumCounter(workers.counters, COUNTER.hits);
    kernel.fsync(VIEW);
    while (served + sumCounter(workers.counters, COUNTER.hits) === done) await setImmediate();
    assert.equal(kernel.answered(), 0);
  };
  t.after(async () => {
    await workers.close();
    await view.close().catch(() => undefined);
    closeSync(unsyncable);
  });
  await view.open();
  translations.filled(entry, 0, BYTES);
  await view.flush();
  return {
    view,
    fsyncs,
    failures,
    hits: () => sumCounter(workers.counters, COUNTER.hits),
  };
};

test('a worker answers an FSYNC after a flush, and the engine after a write of its own', async (t) => {
  const { view, fsyncs, failures, hits } = await standOf(t, false);
  await fsyncs();
  assert.equal(hits(), 1);
  await view.write(guestOffset(0), new Uint8Array(512));
  await fsyncs();
  assert.equal(hits(), 1, 'the write has to be flushed by the engine');
  await fsyncs();
  assert.equal(hits(), 2);
  assert.deepEqual(failures, []);
});

test('a sync that fails fails its FSYNC, and every flush after it', async (t) => {
  const { view, fsyncs, failures, hits } = await standOf(t, true);
  await fsyncs();
  assert.deepEqual(failures, ['EINVAL']);
  await assert.rejects(view.flush(), /fdatasync failed: EINVAL/);
  await fsyncs();
  assert.deepEqual(failures, ['EINVAL', 'EINVAL']);
  assert.equal(hits(), 0);
});

test('a sync that has failed is known to a view that was drained before its FSYNC was taken up', async (t) => {
  const { view, fsyncs, failures } = await standOf(t, true);
  await fsyncs(() => view.drained(async () => undefined));
  assert.deepEqual(failures, ['EINVAL']);
  await assert.rejects(view.flush(), /fdatasync failed: EINVAL/);
});
