/** Small files in the state directory: what is synced, and what is read. Power cuts are in job-store.test.ts. */
import assert from 'node:assert/strict';
import files, { mkdir, symlink, writeFile } from 'node:fs/promises';
import { syncBuiltinESMExports } from 'node:module';
import { join } from 'node:path';
import { mock, test } from 'node:test';
import { readSmallFile, replaceFile } from '../../../src/base/durable-file.ts';
import { tool } from '../../support/file-tools.ts';
import { type Cleanup, scratchDirectory } from '../../support/scratch.ts';

const NOTHING_FAILS = {
  notSynced: (error: unknown): void => {
    throw error;
  },
};

/** Paths of what is synced, in that order. File systems with one journal sync more than they are asked for. */
const syncsOf = async (work: () => Promise<void>): Promise<readonly string[]> => {
  const synced: string[] = [];
  const { open } = files;
  const opening = mock.method(files, 'open', async (...args: Parameters<typeof open>) => {
    const handle = await open(...args);
    const sync = handle.sync.bind(handle);
    handle.sync = async () => {
      await sync();
      synced.push(String(args[0]));
    };
    return handle;
  });
  syncBuiltinESMExports();
  try {
    await work();
  } finally {
    opening.mock.restore();
    syncBuiltinESMExports();
  }
  return synced;
};

test('directories that are made for a small file are synced, each in the one above it', async (t) => {
  const root = await scratchDirectory(t);
  const path = join(root, 'a', 'b', 'file');
  const write = () => replaceFile(path, 'text', NOTHING_FAILS);
  const own = [`${path}.new`, join(root, 'a', 'b')];
  assert.deepEqual(await syncsOf(write), [...own, join(root, 'a'), root]);
  assert.deepEqual(await syncsOf(write), own);
});

const whereRead = async (t: Cleanup): Promise<string> => join(await scratchDirectory(t), 'file');

test('a small file is read whole; who reads waits for no FIFO, follows no link and reads nothing large', {
  timeout: 10_000,
}, async (t) => {
  const path = await whereRead(t);
  await assert.rejects(readSmallFile(path), { code: 'ENOENT' });
  await writeFile(path, 'text');
  assert.equal(await readSmallFile(path), 'text');
  await symlink(path, `${path}.link`);
  await assert.rejects(readSmallFile(`${path}.link`), { code: 'ELOOP' });
  await mkdir(`${path}.directory`);
  await assert.rejects(readSmallFile(`${path}.directory`), /is no regular file/);
  await tool('mkfifo', [`${path}.fifo`]);
  await assert.rejects(readSmallFile(`${path}.fifo`), /is no regular file/);
  await writeFile(path, Buffer.alloc((64 << 10) + 1));
  await assert.rejects(readSmallFile(path), { path, message: /has 65537 bytes, 65536 at most/ });
});
