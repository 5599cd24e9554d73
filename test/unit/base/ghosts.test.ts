import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Ghosts } from '../../../src/base/ghosts.ts';

const COUNT = 256;

/** Sequences of keys as caches have them: neighbours, host offsets of tables, slices of views. */
const SEQUENCES: readonly (readonly [string, (i: number) => number])[] = [
  ['neighbours', (i) => i],
  ['tables of 4 KiB', (i) => i * 4096],
  ['one table in each L2 table, above 4 GiB', (i) => 2 ** 33 + i * 65_536],
  ['tables far from one another', (i) => i * (2 ** 29 + 65_536)],
  ['slices of a view', (i) => 7 * 2 ** 31 + i],
];

for (const [name, keyOf] of SEQUENCES) {
  test(`what is asked for a second time was there, once: ${name}`, () => {
    const ghosts = new Ghosts(COUNT);
    for (let i = 0; i < COUNT / 4; i++) assert.equal(ghosts.take(keyOf(i)), false);
    let known = 0;
    for (let i = 0; i < COUNT / 4; i++) if (ghosts.take(keyOf(i))) known++;
    assert.ok(known >= COUNT / 4 - 4, `${known} of ${COUNT / 4}`);
    assert.equal(ghosts.take(keyOf(0)), false, 'it was taken');
  });

  test(`what was asked for long ago is forgotten: ${name}`, () => {
    const ghosts = new Ghosts(COUNT);
    for (let i = 0; i < 20 * COUNT; i++) ghosts.take(keyOf(i));
    let known = 0;
    for (let i = 0; i < COUNT; i++) if (ghosts.take(keyOf(i))) known++;
    assert.ok(known <= 8, `${known} of ${COUNT}`);
  });
}
