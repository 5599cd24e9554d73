import assert from 'node:assert/strict';
import { open, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { QuickIo } from '../../../../drivers/file/quick-io.ts';
import { scratchDirectory } from '../../../support/scratch.ts';

/** Of ext4. Any local file system that is no tmpfs is served the same. */
const EXT4 = 0xef53;
const BYTES = 8192;
const AROUND = 512;

test('what is cached is read to where it was asked for, and nothing beside it is touched', async (t) => {
  const path = join(await scratchDirectory(t), 'file');
  const content = Uint8Array.from({ length: BYTES }, (_, i) => (i * 7 + (i >> 8)) % 251);
  await writeFile(path, content);
  const file = await open(path, 'r');
  try {
    const quick = new QuickIo(file.fd, EXT4);
    for (const memory of [
      new ArrayBuffer(BYTES + 2 * AROUND),
      new SharedArrayBuffer(BYTES + 2 * AROUND),
    ]) {
      const all = new Uint8Array(memory).fill(255);
      for (const [at, length] of [
        [0, BYTES],
        [100, 4096],
        [4096, 17],
      ] as const) {
        all.fill(255);
        if (!quick.read(all.subarray(AROUND, AROUND + length), at)) {
          // A file system that cannot say what it has cached.
          t.skip('nothing is known of what is cached here');
          return;
        }
        const expected = new Uint8Array(all.length).fill(255);
        expected.set(content.subarray(at, at + length), AROUND);
        assert.deepEqual(all, expected);
      }
    }
  } finally {
    await file.close();
  }
});
