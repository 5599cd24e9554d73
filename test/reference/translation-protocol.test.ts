/**
 * The data plane's protocol, proven over every interleaving of two workers and the control plane on two pages. The
 * code that runs is the code of `src/translation/`; each atomic operation is a step of its own.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { layoutOf } from '../../src/translation/table-layout.ts';
import { Interleavings } from '../support/interleavings.ts';
import {
  at,
  type Change,
  control,
  FREE,
  MOVED,
  PAGE_0,
  reader,
  type Scene,
  scene,
  VIEW,
  writer,
} from '../support/translation-scene.ts';

/** Page 0 moves from cluster 0 to cluster 2: the old place is copied, freed, and used for page 1's neighbour. */
const move =
  (s: Scene): Change =>
  async (step, table, _a, b) => {
    table.revoke(PAGE_0);
    await table.quiesce(PAGE_0);
    step('copy cluster 0 to 2', () => {
      s.host[2] = 1;
      s.host[0] = MOVED;
      return 0;
    });
    table.fill(VIEW, 0, [at(b, 2)]);
    step('reuse cluster 0', () => {
      s.host[0] = 99;
      return 0;
    });
  };

/** Page 0 is unmapped (a discard) and mapped elsewhere at once; its old cluster is freed only after a quiesce. */
const discardAndRewrite =
  (s: Scene): Change =>
  async (step, table, _a, b) => {
    table.revoke(PAGE_0);
    step('allocate cluster 2', () => {
      s.host[2] = 1;
      return 0;
    });
    table.fill(VIEW, 0, [at(b, 2)]);
    await table.quiesce(PAGE_0);
    step('free cluster 0', () => {
      s.host[0] = FREE;
      return 0;
    });
  };

const cases: readonly [string, (s: Scene) => Change, number][] = [
  ['a moved page', move, 2],
  ['a discarded and rewritten page', discardAndRewrite, 1],
];

for (const [what, change, pages] of cases) {
  test(`${what}: no read sees a freed cluster, no write lands in it`, async (t) => {
    const s = scene();
    const words = layoutOf(s.shared).words;
    const processes = [control(s, change(s)), reader(s, 0, 0, pages), writer(s, 1, 0)];
    const found = await new Interleavings({ words, host: s.host }, processes).explore();
    t.diagnostic(`${found.states} states, ${found.endStates} ends`);
    assert.ok(found.states > 1000, 'the search went through the interleavings');
  });
}

test('two writers of one page: neither lands in a moved cluster', async (t) => {
  const s = scene();
  const words = layoutOf(s.shared).words;
  const processes = [control(s, move(s)), writer(s, 0, 0), writer(s, 1, 0)];
  const found = await new Interleavings({ words, host: s.host }, processes).explore();
  t.diagnostic(`${found.states} states, ${found.endStates} ends`);
  assert.ok(found.states > 1000);
});

test('the last page of a request that covers several is as safe as the first', async (t) => {
  const s = scene();
  const words = layoutOf(s.shared).words;
  const page1 = { view: VIEW, firstPage: 1, lastPage: 1 };
  const moveSecond: Change = async (step, table, _a, b) => {
    table.revoke(page1);
    await table.quiesce(page1);
    step('copy cluster 1 to 3, and reuse it', () => {
      s.host[3] = 2;
      s.host[1] = 99;
      return 0;
    });
    table.fill(VIEW, 1, [at(b, 3)]);
  };
  const processes = [control(s, moveSecond), reader(s, 0, 0, 2)];
  const found = await new Interleavings({ words, host: s.host }, processes).explore();
  t.diagnostic(`${found.states} states, ${found.endStates} ends`);
  assert.ok(found.states > 500);
});

test('an entry that is filled over a live one is never read in halves', async (t) => {
  const s = scene();
  const words = layoutOf(s.shared).words;
  const replace: Change = async (step, table, _a, b) => {
    step('copy cluster 0 to 2', () => {
      s.host[2] = 1;
      return 0;
    });
    table.fill(VIEW, 0, [at(b, 2)]);
  };
  const processes = [control(s, replace), reader(s, 0, 0), reader(s, 1, 0, 2)];
  const found = await new Interleavings({ words, host: s.host }, processes).explore();
  t.diagnostic(`${found.states} states, ${found.endStates} ends`);
  assert.ok(found.states > 500);
});
