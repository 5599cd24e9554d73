import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { present } from '../../../src/base/assert.ts';
import { silentLog } from '../../../src/base/log.ts';
import { noLocks } from '../../../src/block/image-locks.ts';
import { QemuLocks } from '../../../src/block/qemu-locks.ts';
import { HeldLocks } from '../../../src/daemon/held-locks.ts';
import { scratchDirectory } from '../../support/scratch.ts';

test('a lock is continued while it was held since an earlier engine, and no longer', async (t) => {
  const directory = await scratchDirectory(t);
  const path = join(directory, 'disk.qcow2');
  await writeFile(path, 'content');
  const locks = new QemuLocks({ require: 'on', log: silentLog });
  t.after(() => locks.close());
  const held = new HeldLocks(locks);
  const ask = async (generation: number) => {
    const [outcome] = await held.acquireAll([{ path, mode: 'write' }], generation);
    const got = present(outcome, 'each lock has an outcome');
    assert.ok(!('error' in got));
    return got;
  };
  const first = await ask(0);
  assert.equal(first.isContinued, false);
  assert.equal((await ask(0)).isContinued, false, 'the same engine asks twice');
  const second = await ask(1);
  assert.equal(second.isContinued, true, 'the engine before had it when it died');
  held.dropBefore(1);
  assert.equal((await ask(1)).isContinued, true, 'and it was never given back');
  held.releaseAll();
  assert.equal((await ask(1)).isContinued, false, 'somebody may have had it in between');
});

test('without locks nothing is continued', async () => {
  const held = new HeldLocks(noLocks);
  for (const generation of [0, 1]) {
    const outcomes = await held.acquireAll([{ path: '/images/disk', mode: 'write' }], generation);
    assert.deepEqual(outcomes, [{ lock: generation + 1, isContinued: false }]);
  }
});
