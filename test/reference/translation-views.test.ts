/**
 * Views that are closed or opened anew, and slots that are used again, under every interleaving of two workers and the control
 * plane: see translation-protocol.test.ts.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ENTRIES_PER_SLICE } from '../../src/translation/table-layout.ts';
import { Interleavings, type Process } from '../support/interleavings.ts';
import {
  at,
  type Change,
  control,
  FREE,
  openTable,
  PAGE,
  PAGE_BITS,
  reader,
  scene,
  VIEW,
  worldOf,
  writer,
} from '../support/translation-scene.ts';

test('a view that was opened anew with larger pages is not read with the old page size', async (t) => {
  const s = scene();
  const reopen: Change = async (step, table, a, b) => {
    await table.closeView(VIEW);
    step('pages 0 and 1 are in clusters 2 and 3 now', () => {
      s.host[2] = 1;
      s.host[3] = 2;
      s.host[1] = 99;
      return 0;
    });
    table.openView(VIEW, PAGE_BITS + 1, 4 * PAGE);
    table.fill(VIEW, 0, [at(b, 2), at(a, 1)]);
  };
  const processes = [control(s, reopen), reader(s, 0, 1)];
  const found = await new Interleavings(worldOf(s), processes).explore();
  t.diagnostic(`${found.states} states, ${found.endStates} ends`);
  assert.ok(found.states > 500);
});

test('a closed view: nobody uses its files afterwards', async (t) => {
  const s = scene();
  const close: Change = async (step, table) => {
    await table.closeView(VIEW);
    step('close the host files', () => {
      s.host.fill(FREE);
      return 0;
    });
  };
  const processes = [control(s, close), reader(s, 0, 0, 2), writer(s, 1, 1)];
  const found = await new Interleavings(worldOf(s), processes).explore();
  t.diagnostic(`${found.states} states, ${found.endStates} ends`);
  assert.ok(found.states > 1000);
});

test('a slot whose slice was evicted is used again only when nobody reads the old slice', async (t) => {
  const s = scene(2);
  // Page 512 is the first of slice 1, page 1024 of slice 2; cluster 1 holds the page that slice 2 begins with.
  s.host[1] = 1025;
  const evict: Change = async (_step, table, a, b) => {
    table.fill(VIEW, ENTRIES_PER_SLICE, [at(b, 3)]);
    // The eviction waits for the workers, not we: time for it to have made the slot free.
    for (let tick = 0; tick < 30; tick++) await null;
    table.fill(VIEW, 2 * ENTRIES_PER_SLICE, [at(a, 1)]);
  };
  const filled: Process = {
    name: 'control',
    prepares: true,
    run: async (step) => {
      const { table, a, b } = openTable(s);
      table.fill(VIEW, 0, [at(a, 0)]);
      step('prepared', () => 0);
      await evict(step, table, a, b);
    },
  };
  const processes = [filled, reader(s, 0, 0)];
  const found = await new Interleavings(worldOf(s), processes).explore();
  t.diagnostic(`${found.states} states, ${found.endStates} ends`);
  assert.ok(found.states > 1000);
});
