import assert from 'node:assert/strict';
import { type FileHandle, open, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { QuickIo } from '../../../../drivers/file/quick-io.ts';
import { loopFileSystem } from '../../../support/loop-file-system.ts';
import { scratchDirectory } from '../../../support/scratch.ts';

/** The type of ext4 in statfs(2). It always can say what it has cached. */
const EXT4 = 0xef53;
const FILE_SYSTEM_BYTES = 16 << 20;
const BYTES = 8192;
const AROUND = 512;

const checkReads = (file: FileHandle, content: Uint8Array): void => {
  for (const memory of [
    new ArrayBuffer(BYTES + 2 * AROUND),
    new SharedArrayBuffer(BYTES + 2 * AROUND),
  ]) {
    const all = new Uint8Array(memory);
    for (const [at, length] of [
      [0, BYTES],
      [100, 4096],
      [4096, 17],
    ] as const) {
      all.fill(255);
      // Each has its own: one that another process has held up rests for a while.
      const quick = new QuickIo(file.fd, EXT4);
      const isRead = quick.read(all.subarray(AROUND, AROUND + length), at);
      assert.ok(isRead, `${length} bytes at ${at} are cached`);
      const expected = new Uint8Array(all.length).fill(255);
      expected.set(content.subarray(at, at + length), AROUND);
      assert.deepEqual(all, expected);
    }
  }
};

test('what is cached is read to where it was asked for, and nothing beside it is touched', async (t) => {
  const scratch = await scratchDirectory(t);
  const { directory, close } = await loopFileSystem('ext4', scratch, FILE_SYSTEM_BYTES);
  try {
    const path = join(directory, 'file');
    const content = Uint8Array.from({ length: BYTES }, (_, i) => (i * 7 + (i >> 8)) % 251);
    await writeFile(path, content);
    await using file = await open(path, 'r');
    checkReads(file, content);
  } finally {
    await close();
  }
});
