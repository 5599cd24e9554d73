import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ShownState } from '../../../mount/catalog/shown-state.ts';

test('what kernels were told first holds for the node; what was not told may be either', () => {
  const shown = new ShownState();
  for (const broken of [true, false]) assert.equal(shown.canBecome({ broken }), true);
  shown.tell({ broken: true });
  shown.tell({ broken: false });
  assert.equal(shown.isBroken, true);
  assert.equal(shown.canBecome({ broken: true }), true);
  assert.equal(shown.canBecome({ broken: false }), false);
});

test('what is superseded can become nothing any more, also before kernels were told', () => {
  const shown = new ShownState();
  shown.supersede();
  assert.equal(shown.isSuperseded, true);
  for (const broken of [true, false]) assert.equal(shown.canBecome({ broken }), false);
  assert.equal(shown.isBroken, false);
});
