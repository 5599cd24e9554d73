import assert from 'node:assert/strict';
import { appendFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { present } from '../../../../src/base/assert.ts';
import { guestOffset } from '../../../../src/base/units.ts';
import { scratchDirectory } from '../../../support/scratch.ts';
import { testGraph } from '../../../support/test-graph.ts';

// As the data plane's workers do it, in a cluster whose end lies past the end of the file.
test('what was written past the known end is read, and no punch cuts it off', async (t) => {
  const directory = await scratchDirectory(t);
  const path = join(directory, 'disk.raw');
  await writeFile(path, Buffer.alloc(4096, 1));
  const graph = await testGraph({ directory });
  const node = await graph.open({ path, format: 'raw', readOnly: false });
  const file = present(node.file, 'a raw image has a file');
  await appendFile(path, Buffer.alloc(8192, 2));
  const read = new Uint8Array(16_384);
  await file.readClipped(guestOffset(0), read);
  assert.deepEqual(
    [read[4095], read[4096], read[12_287], read[12_288]],
    [1, 2, 2, 0],
    'the end is looked for again',
  );
  await appendFile(path, Buffer.alloc(4096, 3));
  await file.driver.discard?.(guestOffset(8192), 6144);
  assert.equal((await stat(path)).size, 16_384);
  await graph.close(node);
});
