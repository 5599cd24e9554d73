import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { tool } from '../../support/file-tools.ts';
import { mountsBelow } from '../../support/mounts-below.ts';
import { scratchDirectory } from '../../support/scratch.ts';

test('what a test has left mounted in its directory goes with it, and fails the test', async () => {
  const hooks: (() => Promise<void>)[] = [];
  const directory = await scratchDirectory({ after: (hook) => void hooks.push(hook) });
  const outer = join(directory, 'with a space');
  const inner = join(outer, 'inner');
  for (const place of [outer, inner]) {
    await mkdir(place);
    await tool('mount', ['-t', 'tmpfs', 'tmpfs', place]);
  }
  assert.deepEqual(mountsBelow(directory), [
    { mountpoint: inner, type: 'tmpfs' },
    { mountpoint: outer, type: 'tmpfs' },
  ]);
  const [remove] = hooks;
  await assert.rejects(remove?.() ?? Promise.resolve(), /left mounted: .*inner .*with a space$/);
  assert.deepEqual(mountsBelow(directory), []);
  assert.ok(!existsSync(directory));
});
