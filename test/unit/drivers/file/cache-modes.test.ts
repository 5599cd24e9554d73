import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { readFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { file } from '../../../../drivers/file/index.ts';
import { createLog } from '../../../../src/base/log.ts';
import { guestOffset } from '../../../../src/base/units.ts';
import type { DriverInstance, OpenPathRequest } from '../../../../src/block/driver.ts';
import { countOf, SEED } from '../../../support/run-parameters.ts';
import { scratchDirectory } from '../../../support/scratch.ts';

const open = (path: string, cache: OpenPathRequest['cache']): Promise<DriverInstance> => {
  const log = createLog({ level: 'error' });
  const opened = file.openPath?.({ path, readOnly: false, create: false, cache, log });
  assert.ok(opened !== undefined);
  return opened;
};

const BYTES = 300_001;
const RANGES = 8;

test(`direct I/O: writes of any alignment at the same time leave each its bytes (seed ${SEED})`, async (t) => {
  const path = join(await scratchDirectory(t), 'file');
  const expected = randomBytes(BYTES);
  await writeFile(path, expected);
  const opened = await open(path, 'none');
  let state = SEED;
  const below = (bound: number): number => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state / 2 ** 32) * bound);
  };
  for (let round = 0; round < countOf(30); round++) {
    // Neighbours that meet inside of blocks, written all at once.
    const cuts = Array.from({ length: RANGES + 1 }, () =>
      below(4) === 0 ? below(BYTES / 4096) * 4096 : below(BYTES),
    ).sort((a, b) => a - b);
    const writes = cuts.slice(1).map((end, i) => {
      const start = cuts[i] ?? 0;
      const bytes = randomBytes(end - start);
      expected.set(bytes, start);
      return opened.write?.(guestOffset(start), bytes);
    });
    await Promise.all(writes);
    assert.equal((await stat(path)).size, BYTES, 'no write makes the file longer than itself');
    const start = below(BYTES);
    const read = Buffer.alloc(1 + below(BYTES - start));
    await opened.read?.(guestOffset(start), read);
    assert.deepEqual(read, expected.subarray(start, start + read.length));
  }
  const pastTheEnd = Buffer.alloc(10_000, 1);
  await opened.read?.(guestOffset(BYTES - 10), pastTheEnd);
  assert.deepEqual(pastTheEnd.subarray(10), Buffer.alloc(9990), 'zeros past the end');
  await opened.flush();
  await opened.close();
  assert.deepEqual(await readFile(path), expected);
});

test('flushes are ignored with unsafe, and real without', async () => {
  // This device takes no fsync, which is how a flush shows.
  const unsafe = await open('/dev/full', 'unsafe');
  await unsafe.flush();
  await unsafe.close();
  const safe = await open('/dev/full', 'writeback');
  await assert.rejects(safe.flush(), { errno: 'EINVAL' });
  await assert.rejects(safe.flush(), { errno: 'EINVAL' }, 'a failed flush never succeeds later');
  await safe.close();
});

test('a host without space fails the write with ENOSPC, quick or not', async () => {
  const full = await open('/dev/full', 'writeback');
  for (const bytes of [4096, 1 << 20])
    await assert.rejects(async () => full.write?.(guestOffset(0), new Uint8Array(bytes)), {
      code: 'ENOSPC',
    });
  await full.close();
});

test('a file system without direct I/O is refused with the option to leave out', async () => {
  await assert.rejects(open('/proc/self/status', 'none'), {
    errno: 'EOPNOTSUPP',
    message: /no direct I\/O/,
  });
});
