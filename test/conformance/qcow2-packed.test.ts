/** Packed clusters share host clusters: what is unmapped, given back and taken again is nobody's to pack into. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { guestOffset } from '../../src/base/units.ts';
import { qemuImg } from '../support/qemu-img.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';

const CLUSTER = 4096;

test('nothing is packed into a host cluster that was given back and is another’s by then', async (t) => {
  const directory = await scratchDirectory(t);
  const path = join(directory, 'disk.qcow2');
  await qemuImg(['create', '-q', '-f', 'qcow2', '-o', 'cluster_size=4k', path, '256k']);
  const graph = await testGraph({ directory });
  const node = await graph.open({ path, format: 'qcow2', readOnly: false });
  const content = new Uint8Array(node.lengthBytes);
  const put = async (cluster: number, value: number, packed: boolean): Promise<void> => {
    const bytes = new Uint8Array(CLUSTER).fill(value);
    content.set(bytes, cluster * CLUSTER);
    const at = guestOffset(cluster * CLUSTER);
    await (packed ? node.writeCompressed(at, bytes) : node.write(at, bytes));
  };
  for (let round = 0; round < 4; round++) {
    await put(0, 10 + round, true);
    // Its host cluster is free after two flushes, and taken by one of the writes that follow.
    await put(0, 20 + round, false);
    await node.flush();
    await new Promise((resolve) => setTimeout(resolve, 20));
    await node.flush();
    for (let i = 1; i < 6; i++) await put(8 * round + i, 30 + i, false);
    await put(40 + round, 50 + round, true);
    const found = new Uint8Array(content.length);
    await node.read(guestOffset(0), found);
    assert.equal(Buffer.compare(found, content), 0, `round ${round}`);
  }
  await graph.close(node);
  await qemuImg(['check', '-q', '-f', 'qcow2', path]);
});
