import assert from 'node:assert/strict';
import { truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { loadRecord } from '../../../src/job/read-record.ts';
import { tool } from '../../support/file-tools.ts';
import { scratchDirectory } from '../../support/scratch.ts';

test('a record of reads is its stretches; what is none is refused, and nobody waits for a FIFO', {
  timeout: 10_000,
}, async (t) => {
  const path = join(await scratchDirectory(t), 'vm.reads');
  assert.equal(await loadRecord(path), null);
  await writeFile(path, '{"offset":4096,"length":512,"ms":0}\n{"offset":0,"length":1024,"ms":3}\n');
  assert.deepEqual(await loadRecord(path), [
    { offset: 4096, lengthBytes: 512 },
    { offset: 0, lengthBytes: 1024 },
  ]);
  await writeFile(path, '{"offset":0,"length":512,"ms":0}\n{"offset":-1,"length":512,"ms":0}\n');
  await assert.rejects(loadRecord(path), { path, message: 'line 2: is no stretch of a record' });
  await truncate(path, 200_000_001);
  await assert.rejects(loadRecord(path), { message: 'has 200000001 bytes, 200000000 at most' });
  await tool('mkfifo', [`${path}.fifo`]);
  await assert.rejects(loadRecord(`${path}.fifo`), { message: 'is no regular file' });
});
