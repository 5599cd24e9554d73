import assert from 'node:assert/strict';
import { closeSync, openSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { setImmediate as nextTurn, setTimeout as sleep } from 'node:timers/promises';
import { present } from '../../../src/base/assert.ts';
import { silentLog } from '../../../src/base/log.ts';
import type { LockMode } from '../../../src/block/image-locks.ts';
import { QemuLocks } from '../../../src/block/qemu-locks.ts';
import { isByteLocked, lockByte } from '../../../src/os/file-locks.ts';
import { scratchDirectory } from '../../support/scratch.ts';

/** What a writer has: that it reads, writes and resizes, and that nobody else writes or resizes. */
const WRITER = [100, 101, 103, 201, 203];
const READER = [100, 201, 203];
const NOBODY_ELSE_WRITES = 201;

/** Another open file description stands for another program: locks belong to those. */
const otherProgram = (t: TestContext, path: string): number => {
  const fd = openSync(path, 'r');
  t.after(() => closeSync(fd));
  return fd;
};

/** A file that an earlier process has locked, and the locks of the one that takes over from it. */
const adopted = async (t: TestContext, mode: LockMode) => {
  const path = join(await scratchDirectory(t), 'disk.img');
  await writeFile(path, 'content');
  const kept: number[] = [];
  const opened = (_lock: unknown, fd: number): void => void kept.push(fd);
  const first = new QemuLocks({ require: 'on', log: silentLog, opened });
  const { tenure } = await first.acquire(path, mode);
  const locks = new QemuLocks({ require: 'on', log: silentLog });
  locks.adopt(present(kept[0], 'it was told of the descriptor'), present(tenure, 'it has locks'));
  t.after(() => locks.close());
  const onlooker = otherProgram(t, path);
  const held = (): number[] => WRITER.filter((byte) => isByteLocked(onlooker, byte));
  const another = new QemuLocks({ require: 'on', log: silentLog });
  return { path, locks, tenure, held, another, other: otherProgram(t, path) };
};

const REFUSED = { kind: 'locked', errno: 'EBUSY' };

test('an adopted lock does not fall when an attempt is refused', async (t) => {
  const { path, locks, tenure, held, another, other } = await adopted(t, 'write');
  assert.ok(lockByte(other, NOBODY_ELSE_WRITES, 'shared'));
  await assert.rejects(locks.acquire(path, 'write'), REFUSED);
  assert.ok(lockByte(other, NOBODY_ELSE_WRITES, 'none'));
  assert.deepEqual(held(), WRITER);
  await assert.rejects(another.acquire(path, 'write'), REFUSED);
  assert.equal((await locks.acquire(path, 'write')).tenure, tenure, 'nobody was in between');
});

test('what a writer had is kept for the next one also after it has asked to read', async (t) => {
  const { path, locks, tenure, held, another, other } = await adopted(t, 'write');
  const reading = await locks.acquire(path, 'read');
  assert.equal(reading.tenure, tenure);
  assert.ok(lockByte(other, NOBODY_ELSE_WRITES, 'shared'));
  await assert.rejects(locks.acquire(path, 'write'), REFUSED);
  assert.ok(lockByte(other, NOBODY_ELSE_WRITES, 'none'));
  assert.deepEqual(held(), WRITER);
  await reading.release();
  assert.deepEqual(held(), WRITER, 'it has not been settled yet');
  await assert.rejects(another.acquire(path, 'read'), REFUSED);
  locks.settleAdopted();
  const writing = await another.acquire(path, 'write');
  await writing.release();
  assert.notEqual((await locks.acquire(path, 'write')).tenure, tenure, 'somebody was in between');
});

test('what a refused attempt has taken beside adopted locks is given back when they are settled', async (t) => {
  const { path, locks, held, other } = await adopted(t, 'read');
  await locks.acquire(path, 'read');
  assert.ok(lockByte(other, NOBODY_ELSE_WRITES, 'shared'));
  await assert.rejects(locks.acquire(path, 'write'), REFUSED);
  locks.settleAdopted();
  assert.deepEqual(held(), READER);
});

test('who is kept out and looks in does not have the owner refused', async (t) => {
  const { path, locks, tenure, other } = await adopted(t, 'write');
  assert.ok(lockByte(other, NOBODY_ELSE_WRITES, 'shared'));
  const writing = locks.acquire(path, 'write');
  await sleep(50);
  assert.ok(lockByte(other, NOBODY_ELSE_WRITES, 'none'));
  assert.equal((await writing).tenure, tenure);
});

test('a file that others have had before is refused at once', async (t) => {
  const path = join(await scratchDirectory(t), 'disk.img');
  await writeFile(path, 'content');
  const locks = new QemuLocks({ require: 'on', log: silentLog });
  assert.ok(lockByte(otherProgram(t, path), NOBODY_ELSE_WRITES, 'shared'));
  let isRefused = false;
  locks.acquire(path, 'write').catch(() => {
    isRefused = true;
  });
  await nextTurn();
  assert.ok(isRefused, 'a mount of many such files waits for none');
});

test('the copy of a descriptor is forgotten before its locks fall', async (t) => {
  const path = join(await scratchDirectory(t), 'disk.img');
  await writeFile(path, 'content');
  const onlooker = otherProgram(t, path);
  const seen: boolean[] = [];
  const closed = (): void => void seen.push(isByteLocked(onlooker, NOBODY_ELSE_WRITES));
  const locks = new QemuLocks({ require: 'on', log: silentLog, closed });
  await (await locks.acquire(path, 'write')).release();
  assert.deepEqual(seen, [true]);
  assert.equal(isByteLocked(onlooker, NOBODY_ELSE_WRITES), false);
});
