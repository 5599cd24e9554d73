/**
 * A page that a worker reads along with a write that copies it, under every interleaving of the worker and of a control plane that changes
 * what the page is: what is used is what the page reads as at that moment. See src/translation/pages-along.ts.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Lookup } from '../../src/translation/lookup.ts';
import { COPY, layoutOf, READ } from '../../src/translation/table-layout.ts';
import type { TranslationTable } from '../../src/translation/translation-table.ts';
import { Interleavings, type Process, type Step } from '../support/interleavings.ts';
import {
  at,
  openTable,
  PAGE,
  PAGE_0,
  PAGE_BITS,
  type Scene,
  scene,
  VIEW,
  worldOf,
} from '../support/translation-scene.ts';

/** Of the page: what it reads as in the layer below, and after a write. */
const [BELOW, WRITTEN] = [1, 50];
/** Where in `host` the slot lies that the worker hands over: whether it did, and what it says. */
const [HANDED, CONTENT, STATE, WORD_0, WORD_1] = [4, 5, 6, 7, 8];

/** Reads page 0 for a write of a part of it, and hands that over. */
const copier = (s: Scene): Process => ({
  name: 'copier',
  run: (step) => {
    const lookup = new Lookup(layoutOf(s.shared), 0);
    if (!lookup.beginPage(VIEW, 512, 512)) return;
    assert.deepEqual([lookup.count, lookup.lengths[0]], [1, PAGE]);
    const cluster = s.clusterOf(lookup.files[0] ?? 0, lookup.hostOffsets[0] ?? 0);
    const content = step(`pread cluster ${cluster}`, () => s.host[cluster] ?? 0);
    lookup.end();
    const { state, word0, word1 } = lookup;
    step('hand over', () => {
      const said = [1, content, state, word0, word1];
      for (const [i, value] of said.entries()) s.host[HANDED + i] = value;
      return 0;
    });
  },
});

/** The control plane takes the write up, if it has come: `content` is what the page reads as. */
const takeUp = (s: Scene, step: Step, table: TranslationTable, content: number): void => {
  const said = (what: number): number => step(`slot ${what}`, () => s.host[what] ?? 0);
  if (said(HANDED) === 0) return;
  const page = {
    lengthBytes: PAGE,
    state: said(STATE),
    word0: said(WORD_0),
    word1: said(WORD_1),
  };
  if (!table.isInForce(VIEW, 0, page)) return;
  const used = step('uses the page', () => {
    s.host[USED] = 1;
    return s.host[CONTENT] ?? 0;
  });
  assert.equal(used, content, 'what was read is what the page reads as');
};

/** In `host`: some interleaving has used the page. */
const USED = 9;

type Changes = (step: Step, table: TranslationTable, take: (content: number) => void) => unknown;

const control = (s: Scene, changes: Changes): Process => ({
  name: 'control',
  prepares: true,
  run: async (step) => {
    const { table, a } = openTable(s);
    table.fill(VIEW, 0, [at(a, 0, READ | COPY)]);
    step('prepared', () => 0);
    await changes(step, table, (content) => takeUp(s, step, table, content));
  },
});

const setCluster = (s: Scene, step: Step, cluster: number, content: number): void => {
  step(`cluster ${cluster} holds ${content}`, () => {
    s.host[cluster] = content;
    return 0;
  });
};

const FILE_B_INDEX = 1;

const cases: readonly [string, (s: Scene) => Changes][] = [
  [
    'a page that is written meanwhile',
    (s) => (step, table, take) => {
      take(BELOW);
      table.revoke(PAGE_0);
      setCluster(s, step, 2, WRITTEN);
      table.fill(VIEW, 0, [at(FILE_B_INDEX, 2)]);
      take(WRITTEN);
    },
  ],
  [
    'a page that goes elsewhere and comes back',
    (s) => (step, table, take) => {
      table.revoke(PAGE_0);
      setCluster(s, step, 2, WRITTEN);
      table.fill(VIEW, 0, [at(FILE_B_INDEX, 2, READ | COPY)]);
      take(WRITTEN);
      table.revoke(PAGE_0);
      table.fill(VIEW, 0, [at(0, 0, READ | COPY)]);
      take(BELOW);
    },
  ],
  [
    'a view that is opened anew over what was committed to the layer below',
    (s) => async (step, table, take) => {
      await table.closeView(VIEW);
      setCluster(s, step, 0, WRITTEN);
      table.openView(VIEW, PAGE_BITS, 2 * PAGE);
      table.fill(VIEW, 0, [at(0, 0, READ | COPY)]);
      take(WRITTEN);
    },
  ],
];

for (const [what, changes] of cases) {
  test(`${what}: no stale page comes along`, async (t) => {
    const s = scene();
    s.host.push(...Array.from({ length: USED - s.host.length + 1 }, () => 0));
    const processes = [control(s, changes(s)), copier(s)];
    const found = await new Interleavings(worldOf(s), processes).explore();
    t.diagnostic(`${found.states} states, ${found.endStates} ends`);
    assert.ok(found.states > 150, 'the search went through the interleavings');
  });
}
