/**
 * Slots that go from slice to slice while a worker looks at them for a slice of its own, under every interleaving of the two. Nobody waits for
 * that worker: it uses other pages.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  directoryStart,
  ENTRIES_PER_SLICE,
  layoutOf,
  PROBES,
} from '../../src/translation/table-layout.ts';
import type { TranslationTable } from '../../src/translation/translation-table.ts';
import { Interleavings, type Process } from '../support/interleavings.ts';
import {
  at,
  openTable,
  PAGE,
  PAGE_BITS,
  reader,
  type Scene,
  scene,
  VIEW,
  worldOf,
} from '../support/translation-scene.ts';

/** A view whose slice 0 has a place in the directory at which a worker looks for that of VIEW. */
const neighbour = (s: Scene): number => {
  const layout = layoutOf(s.shared);
  const start = directoryStart(layout, VIEW, 0);
  const isNear = (view: number): boolean =>
    ((directoryStart(layout, view, 0) - start) & (layout.directoryWords - 1)) < PROBES;
  let view = VIEW + 1;
  while (!isNear(view)) view++;
  return view;
};

interface Fill {
  readonly view: number;
  readonly slice: number;
}

/** The neighbour's slice 0 is in the table of two slots; each fill evicts the oldest slice, whose slot the next but one gets. */
const fillsBeside = async (
  s: Scene,
  fills: (other: number) => readonly Fill[],
): Promise<number> => {
  const other = neighbour(s);
  // Neither is page 0 of the view, which the worker asks for.
  [s.host[0], s.host[1]] = [513, 1025];
  const fill = (table: TranslationTable, { view, slice }: Fill, file: number): void => {
    table.fill(view, slice * ENTRIES_PER_SLICE, [at(file, slice % 2)]);
  };
  const control: Process = {
    name: 'control',
    prepares: true,
    run: async (step) => {
      const { table, a } = openTable(s);
      table.openView(other, PAGE_BITS, 8 * ENTRIES_PER_SLICE * PAGE);
      fill(table, { view: other, slice: 0 }, a);
      step('prepared', () => 0);
      for (const next of fills(other)) fill(table, next, a);
    },
  };
  const found = await new Interleavings(worldOf(s), [control, reader(s, 0, 0)]).explore();
  return found.states;
};

test('a slot that goes from another view to another slice is not found under the numbers of both', async (t) => {
  const states = await fillsBeside(scene(2), () => [
    { view: VIEW, slice: 1 },
    { view: VIEW, slice: 2 },
  ]);
  t.diagnostic(`${states} states`);
  assert.ok(states > 500);
});

test('nor one that goes on to a slice of the number that it had', async (t) => {
  const states = await fillsBeside(scene(2), (other) => [
    { view: VIEW, slice: 1 },
    { view: VIEW, slice: 2 },
    { view: other, slice: 3 },
    { view: other, slice: 0 },
  ]);
  t.diagnostic(`${states} states`);
  assert.ok(states > 500);
});
