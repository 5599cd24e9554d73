/**
 * Mirrors that are given up by force while their target hangs: source and guest are let go at once, and what hangs still has what
 * it uses until it ends.
 */
import assert from 'node:assert/strict';
import { readlinkSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { present } from '../../src/base/assert.ts';
import { endsWithin } from '../../src/base/bounded-wait.ts';
import type { Job } from '../../src/job/job.ts';
import type { FileOperation } from '../support/delayed-file.ts';
import { type Hook, KIB, MIB, mirrorScene, put } from '../support/mirror-scene.ts';
import { until } from '../support/until.ts';

/** What is given up is let go in less. */
const SOON_MS = 1000;

/** Operations of one kind hang until they are answered. */
const hanging = (
  operation: FileOperation,
): { readonly hook: Hook; readonly answer: () => void; readonly count: () => number } => {
  let answer = (): void => undefined;
  const answered = new Promise<void>((resolve) => {
    answer = resolve;
  });
  let count = 0;
  const hook: Hook = async (seen) => {
    if (seen !== operation) return;
    count++;
    await answered;
  };
  return { hook, answer, count: () => count };
};

const giveUp = async (job: Job): Promise<void> => {
  job.cancel({ force: true });
  await until('it has ended', () => job.status === 'concluded', SOON_MS);
  assert.equal(job.error, 'Operation canceled');
};

const soon = async (what: string, work: Promise<unknown>): Promise<void> =>
  assert.ok(await endsWithin(work, SOON_MS), `${what} within ${SOON_MS} ms`);

const fileOf = (descriptor: number): string | null => {
  try {
    return readlinkSync(`/proc/self/fd/${descriptor}`);
  } catch {
    return null;
  }
};

test('the source is closed while the host still hangs in a copy from it, whose descriptor stays its own', async (t) => {
  const { stand, on } = await mirrorScene(t, { copiesInHost: true });
  await put(stand, 0, 8 * MIB, 7);
  const target = hanging('write');
  t.after(target.answer);
  on.target = target.hook;
  const job = await stand.mirror({ targetIsZero: false });
  await until('the host copies', () => target.count() > 0);
  const descriptor = present(stand.root.file?.driver.hostFd, 'it is a file of this host');
  await giveUp(job);
  await soon('the view is closed', stand.view.close());
  assert.equal(fileOf(descriptor), stand.source, 'no file that is opened now gets its number');
  target.answer();
  await soon('the target is closed', stand.released);
  await until('the descriptor is closed', () => fileOf(descriptor) !== stand.source);
});

test('a guest that waits for a range, which a copy to a hanging target has, is let go', async (t) => {
  const { stand, on } = await mirrorScene(t);
  await put(stand, 0, 64 * KIB, 1);
  const target = hanging('write');
  t.after(target.answer);
  on.target = target.hook;
  const job = await stand.mirror({ copyMode: 'write-blocking', granularityBytes: 64 * KIB });
  await until('it copies', () => target.count() > 0);
  let isWritten = false;
  const write = put(stand, 4 * KIB, 4 * KIB, 9).then(() => {
    isWritten = true;
  });
  await sleep(50);
  assert.equal(isWritten, false, 'the copy has the range');
  await giveUp(job);
  await soon('the guest writes', write);
  await soon('the view is closed', stand.view.close());
  target.answer();
  await soon('the target is closed', stand.released);
  assert.equal((await readFile(stand.source))[4 * KIB], 9);
});

test('copies that waited behind one that hung do not begin when it is answered, and open nothing again', async (t) => {
  const { stand, on } = await mirrorScene(t, { lengthBytes: 64 * MIB });
  await put(stand, 0, 64 * MIB, 1);
  const target = hanging('write');
  t.after(target.answer);
  on.target = target.hook;
  const job = await stand.mirror();
  await until('as many hang as may', () => target.count() >= 16);
  await giveUp(job);
  await soon('the view is closed', stand.view.close());
  let reads = 0;
  on.source = async () => {
    reads++;
  };
  target.answer();
  await soon('the target is closed', stand.released);
  await sleep(50);
  assert.equal(stand.view.root, null, 'the view stays closed');
  assert.equal(reads, 0);
});

test('a guest is let go that has grown its disk, and whose target hangs growing after it', async (t) => {
  const { stand, on } = await mirrorScene(t, { lengthBytes: MIB });
  const job = await stand.mirror();
  await stand.readyOrEnded(job);
  const target = hanging('resize');
  t.after(target.answer);
  on.target = target.hook;
  await stand.view.truncate(2 * MIB);
  await until('the target grows', () => target.count() > 0);
  const write = put(stand, 0, 4 * KIB, 5);
  await giveUp(job);
  await soon('the guest writes', write);
  await soon('the view is closed', stand.view.close());
  target.answer();
  await soon('the target is closed', stand.released);
});
