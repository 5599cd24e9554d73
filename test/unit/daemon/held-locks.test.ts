import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { present } from '../../../src/base/assert.ts';
import { silentLog } from '../../../src/base/log.ts';
import { type LockMode, noLocks } from '../../../src/block/image-locks.ts';
import { QemuLocks } from '../../../src/block/qemu-locks.ts';
import { HeldLocks } from '../../../src/daemon/held-locks.ts';
import { scratchDirectory } from '../../support/scratch.ts';

test('locks of a file have one tenure while it stays locked, whoever asks', async (t) => {
  const directory = await scratchDirectory(t);
  const path = join(directory, 'disk.qcow2');
  await writeFile(path, 'content');
  const locks = new QemuLocks({ require: 'on', log: silentLog });
  t.after(() => locks.close());
  const held = new HeldLocks(locks);
  const ask = async (generation: number, mode: LockMode = 'write'): Promise<string> => {
    const [outcome] = await held.acquireAll([{ path, mode }], generation);
    const got = present(outcome, 'each lock has an outcome');
    assert.ok(!('error' in got) && got.tenure !== null);
    return got.tenure;
  };
  const first = await ask(0, 'read');
  assert.equal(await ask(0), first);
  assert.equal(await ask(1), first, 'the engine before had it when it died');
  held.dropBefore(1);
  assert.equal(await ask(1), first, 'it was never given back');
  held.releaseAll();
  assert.notEqual(await ask(1), first, 'somebody may have had it in between');
});

test('without locks there is no tenure', async () => {
  const held = new HeldLocks(noLocks);
  const outcomes = await held.acquireAll([{ path: '/images/disk', mode: 'write' }], 0);
  assert.deepEqual(outcomes, [{ lock: 1, tenure: null }]);
});
