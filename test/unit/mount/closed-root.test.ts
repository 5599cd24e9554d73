/** What is asked of a view while a pivot has closed its root, and opens another one. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { sizesOf } from '../../../mount/catalog/attributes.ts';
import { statHostFile } from '../../../mount/catalog/host-file.ts';
import type { Inspection } from '../../../mount/catalog/inspection.ts';
import { remoteFilesOf } from '../../../mount/catalog/remote-files.ts';
import { qemuImg } from '../../support/qemu-img.ts';
import { scratchDirectory } from '../../support/scratch.ts';
import { testGraph } from '../../support/test-graph.ts';

test('the size of a root that is closed is what its header said, and it has no files on servers', async (t) => {
  const directory = await scratchDirectory(t);
  const path = join(directory, 'disk.qcow2');
  await qemuImg(['create', '-q', '-f', 'qcow2', path, '8M']);
  const graph = await testGraph({ directory });
  const root = await graph.open({ path, format: null, readOnly: false });
  const host = await statHostFile(path);
  const inspection = {
    description: { virtualSizeBytes: 8 << 20 },
    dataFiles: [],
    chain: [],
  } as unknown as Inspection;
  assert.equal((await sizesOf(root, inspection, host)).virtualSizeBytes, 8 << 20);
  await graph.close(root);
  assert.equal(root.isOpen, false);
  assert.deepEqual(remoteFilesOf(root), []);
  assert.equal((await sizesOf(root, inspection, host)).virtualSizeBytes, 8 << 20);
});
