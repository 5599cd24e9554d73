/**
 * Guards speed: two rows of the benchmark against QEMU's own export, with floors at 0.6 of their targets, since the
 * machine may be busy, and two more tries.
 */
import assert from 'node:assert/strict';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { present } from '../../src/base/assert.ts';
import { Disks } from '../bench/disks.ts';
import { measureRow } from '../bench/measure.ts';
import { ROWS } from '../bench/rows.ts';
import { CleanupStack } from '../support/cleanup-stack.ts';
import { scratchDirectory } from '../support/scratch.ts';

const FLOOR = 0.6;
const TRIES = 3;

test('short reads and in-place writes are faster than those of QEMU', async (t) => {
  const cleanup = new CleanupStack(t);
  const root = await scratchDirectory(cleanup);
  const scratch = join(root, 'scratch');
  await mkdir(scratch);
  const disks = new Disks(root);
  for (const name of ['random read 4k, depth 1', 'in-place random write 4k, depth 1']) {
    const row = present(
      ROWS.find((r) => r.name === name),
      'the row is in the benchmark',
    );
    const floor = FLOOR * (row.targets[0]?.atLeast ?? Number.NaN);
    const ratios: number[] = [];
    while (ratios.length < TRIES && !ratios.some((ratio) => ratio >= floor)) {
      const [measured] = await measureRow(row, disks, scratch, 1);
      ratios.push(measured?.ratio.median ?? 0);
    }
    assert.ok(
      ratios.some((ratio) => ratio >= floor),
      `${name}: ${ratios.map((r) => r.toFixed(2)).join(', ')} times QEMU's, ${floor} is the floor`,
    );
  }
});
