/** Mirrors of guests that never stop, to targets that are slow or do not answer: how they converge, and are given up. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { ended, type Hook, KIB, MIB, mirrorScene, put } from '../support/mirror-scene.ts';
import type { MirrorStand } from '../support/mirror-stand.ts';
import { until } from '../support/until.ts';

/** Writes granule after granule, as fast as it is let, until it is stopped. */
const restlessGuest = (stand: MirrorStand): { stop: () => Promise<number> } => {
  let isOver = false;
  const granules = stand.root.lengthBytes / (64 * KIB);
  const writing = (async () => {
    let writes = 0;
    while (!isOver) {
      await put(stand, ((writes * 7919) % granules) * 64 * KIB, 64 * KIB, 1 + (writes % 250));
      writes++;
      if (writes % 16 === 0) await sleep(1);
    }
    return writes;
  })();
  return {
    stop: () => {
      isOver = true;
      return writing;
    },
  };
};

/** One write after the other, each 20 ms. */
const slowTarget = (): Hook => {
  let before = Promise.resolve();
  return async (operation) => {
    if (operation !== 'write') return;
    before = before.then(() => sleep(20));
    await before;
  };
};

test('a guest faster than the target keeps a mirror from its end, until it is write-blocking', async (t) => {
  const { stand, on } = await mirrorScene(t, { lengthBytes: 32 * MIB });
  await put(stand, 0, 32 * MIB, 1);
  on.target = slowTarget();
  const guest = restlessGuest(stand);
  t.after(() => guest.stop());
  const job = await stand.mirror({ granularityBytes: 64 * KIB });
  await sleep(700);
  assert.equal(job.status, 'running', 'the guest is faster');
  job.change({ copyMode: 'write-blocking' });
  await until('it is ready', () => job.status === 'ready', 20_000);
  await until('it is in step', () => job.blockJobInfo()['actively-synced'] === true);
  job.complete();
  await until('it has ended', () => job.status === 'concluded');
  const writes = await guest.stop();
  assert.ok(writes > 10);
  assert.equal(job.error, null);
  assert.equal(stand.root.path, stand.target);
  await stand.view.close();
});

for (const force of [false, true]) {
  test(`a ${force ? 'forced ' : ''}cancel is seen although the guest never stops`, async (t) => {
    const { stand, on } = await mirrorScene(t);
    const job = await stand.mirror({ granularityBytes: 64 * KIB });
    await stand.readyOrEnded(job);
    on.target = slowTarget();
    const guest = restlessGuest(stand);
    t.after(() => guest.stop());
    await sleep(300);
    assert.equal(job.status, 'ready');
    const begun = performance.now();
    job.cancel({ force });
    await until('it has ended', () => job.status === 'concluded');
    assert.ok(performance.now() - begun < 5000);
    await guest.stop();
    assert.equal(job.error, force ? 'Operation canceled' : null);
    assert.equal(stand.root.path, stand.source);
    await stand.view.close();
  });
}

test('a forced cancel lets a guest go that waits for a target which does not answer', async (t) => {
  const { stand, on } = await mirrorScene(t);
  const job = await stand.mirror({ copyMode: 'write-blocking' });
  await stand.readyOrEnded(job);
  let answer = (): void => undefined;
  const answered = new Promise<void>((resolve) => {
    answer = resolve;
  });
  on.target = async (operation) => {
    if (operation === 'write') await answered;
  };
  let isWritten = false;
  const write = put(stand, 0, 4 * KIB, 9).then(() => {
    isWritten = true;
  });
  await sleep(50);
  assert.equal(isWritten, false, 'write-blocking');
  job.cancel({ force: true });
  await write;
  answer();
  await ended(job);
  await stand.view.close();
});

test('a forced cancel does not wait for a target that does not answer', async (t) => {
  const { stand, on } = await mirrorScene(t);
  await put(stand, 0, 4 * MIB, 1);
  let answer = (): void => undefined;
  const answered = new Promise<void>((resolve) => {
    answer = resolve;
  });
  on.target = async (operation) => {
    if (operation === 'write') await answered;
  };
  const job = await stand.mirror();
  await sleep(50);
  job.cancel({ force: true });
  await until('it has ended', () => job.status === 'concluded', 1000);
  assert.equal(job.error, 'Operation canceled');
  let isClosed = false;
  const closed = stand.released.then(() => {
    isClosed = true;
  });
  await sleep(50);
  assert.equal(isClosed, false, 'the target is still there: it writes');
  answer();
  await closed;
  await stand.view.close();
});

test('a guest is not held by a flush that a target does not answer, once the job is given up', async (t) => {
  const { stand, on } = await mirrorScene(t);
  const job = await stand.mirror();
  await stand.readyOrEnded(job);
  let answer = (): void => undefined;
  const answered = new Promise<void>((resolve) => {
    answer = resolve;
  });
  let flushes = 0;
  on.target = async (operation) => {
    // The first one is done while the guest goes on, the second while it is held.
    if (operation === 'flush' && ++flushes === 2) await answered;
  };
  job.complete();
  await until('the guest is held', () => flushes === 2);
  const write = put(stand, 0, 4 * KIB, 1);
  job.cancel({ force: true });
  await write;
  await until('it has ended', () => job.status === 'concluded', 1000);
  assert.equal(stand.root.path, stand.source);
  answer();
  await stand.released;
  await stand.view.close();
});
