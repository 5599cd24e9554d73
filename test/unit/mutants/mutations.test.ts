import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { MUTATIONS } from '../../mutants/mutations.ts';

const BUILT = fileURLToPath(new URL('../../../', import.meta.url));

test('each mutant fits the program as it is built: its step is there once, and its tests are', () => {
  for (const { step, file, find, tests } of MUTATIONS) {
    const times = readFileSync(`${BUILT}${file}`, 'utf8').split(find).length - 1;
    assert.equal(times, 1, `${step}: ${file} has it ${times} times`);
    for (const name of tests) assert.ok(existsSync(`${BUILT}${name}`), `${step}: ${name}`);
  }
  assert.equal(new Set(MUTATIONS.map(({ step }) => step)).size, MUTATIONS.length);
});
