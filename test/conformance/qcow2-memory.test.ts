/** What a request may take of memory, whatever range it names. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { guestOffset } from '../../src/base/units.ts';
import { qemuImg } from '../support/qemu-img.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';

const DISK_BYTES = 192 << 20;
const BOUND_KILOBYTES = 96 << 10;

test('space for many large clusters is filled in pieces, not in one', async (t) => {
  const directory = await scratchDirectory(t);
  const path = `${directory}/disk.qcow2`;
  // Version 2 cannot say that a cluster reads as zeros: they are written.
  const options = 'compat=0.10,cluster_size=2M';
  await qemuImg(['create', '-q', '-f', 'qcow2', '-o', options, path, String(DISK_BYTES)]);
  const graph = await testGraph({ directory });
  const node = await graph.open({ path, format: 'qcow2', readOnly: false });
  const before = process.resourceUsage().maxRSS;
  await node.allocate(guestOffset(0), DISK_BYTES);
  const grown = process.resourceUsage().maxRSS - before;
  assert.ok(grown < BOUND_KILOBYTES, `${grown} KiB for ${DISK_BYTES >> 10} KiB`);
  await graph.close(node);
  await qemuImg(['check', '-q', '-f', 'qcow2', path]);
});
