import assert from 'node:assert/strict';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { cloneFileRange, copyFileRange } from '../../../src/os/file-copies.ts';
import { fallocate } from '../../../src/os/file-ranges.ts';
import { scratchDirectory } from '../../support/scratch.ts';

test('calls on other threads that fail at the same time have each its own errno', async (t) => {
  const handle = await open(join(await scratchDirectory(t), 'file'), 'w+');
  const system = await open('/proc/self/status');
  const to = { fd: handle.fd, offset: 0 };
  for (let i = 0; i < 50; i++) {
    const from = { fd: system.fd, offset: 0 };
    await Promise.all([
      assert.rejects(fallocate(-1, 0, 0, 1), { errno: 'EBADF' }),
      assert.rejects(fallocate(handle.fd, 0, 0, -1), { errno: 'EINVAL' }),
      assert.rejects(cloneFileRange(from, to, 4096), { errno: 'EXDEV' }),
      assert.rejects(copyFileRange({ fd: -1, offset: 0 }, to, 4096), { errno: 'EBADF' }),
    ]);
  }
  await system.close();
  await handle.close();
});
