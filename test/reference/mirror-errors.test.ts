/** Mirrors whose source or target fails, by each policy, and flushes that fail. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { guestOffset } from '../../src/base/units.ts';
import {
  assertSame,
  ended,
  errorsOf,
  failing,
  MIB,
  mirrorScene,
  nothing,
  put,
} from '../support/mirror-scene.ts';
import { until } from '../support/until.ts';

for (const side of ['source', 'target'] as const) {
  const operation = side === 'source' ? 'read' : 'write';
  const policy = side === 'source' ? 'onSourceError' : 'onTargetError';

  test(`${side} error, report: the job ends with it, and the source is what it was`, async (t) => {
    const { stand, on } = await mirrorScene(t);
    await put(stand, 0, 2 * MIB, 1);
    on[side] = failing(operation, 1);
    const job = await stand.mirror({ [policy]: 'report' });
    await ended(job);
    assert.match(job.error ?? '', /the fault of this test/);
    assert.deepEqual(errorsOf(stand)[0], { device: 'disk', operation, action: 'report' });
    assert.equal(stand.root.path, stand.source);
    on[side] = nothing;
    const seen = Buffer.alloc(2 * MIB);
    await stand.view.read(guestOffset(0), seen);
    assert.ok(seen.every((byte) => byte === 1));
    await stand.view.close();
  });

  test(`${side} error, ignore: what has failed stays dirty and is copied later`, async (t) => {
    const { stand, on } = await mirrorScene(t);
    await put(stand, 0, 4 * MIB, 1);
    on[side] = failing(operation, 3);
    const job = await stand.mirror({ [policy]: 'ignore' });
    await stand.readyOrEnded(job);
    assert.equal(job.status, 'ready');
    assert.ok(errorsOf(stand).length >= 3);
    assert.equal(job.blockJobInfo()['io-status'], 'ok');
    job.cancel({ force: false });
    await ended(job);
    assert.equal(job.error, null);
    await assertSame(stand);
  });

  test(`${side} error, stop: the job waits, is resumed, and copies what has failed`, async (t) => {
    const { stand, on } = await mirrorScene(t);
    await put(stand, 0, 4 * MIB, 1);
    on[side] = failing(operation, 2);
    const job = await stand.mirror({ [policy]: 'stop' });
    await until('it is paused', () => job.status === 'paused');
    assert.equal(job.blockJobInfo()['io-status'], 'failed');
    assert.deepEqual(errorsOf(stand)[0], { device: 'disk', operation, action: 'stop' });
    // The second one fails when the first has paused the job, or after it.
    await until('it is ready', () => {
      if (job.status === 'paused') job.resume();
      return job.status === 'ready';
    });
    job.complete();
    await ended(job);
    assert.equal(job.error, null);
    await assertSame(stand);
  });

  test(`${side} error, enospc: only a full disk lets it wait`, async (t) => {
    const { stand, on } = await mirrorScene(t);
    await put(stand, 0, 2 * MIB, 1);
    on[side] = failing(operation, 1, 'no-space');
    const job = await stand.mirror({ [policy]: 'enospc' });
    await until('it is paused', () => job.status === 'paused');
    assert.equal(job.blockJobInfo()['io-status'], 'nospace');
    on[side] = failing(operation, 1, 'io');
    job.resume();
    await ended(job);
    assert.match(job.error ?? '', /the fault of this test/);
    await stand.view.close();
  });
}

test('a flush of the target that fails before it is ready is an error of the job, whatever the policy', async (t) => {
  for (const policy of ['report', 'ignore', 'stop'] as const) {
    const { stand, on } = await mirrorScene(t);
    await put(stand, 0, MIB, 1);
    on.target = failing('flush', 1);
    const job = await stand.mirror({ onTargetError: policy });
    await ended(job);
    assert.match(job.error ?? '', /the fault of this test/, policy);
    assert.ok(!stand.names().includes('BLOCK_JOB_READY'), 'it was never ready');
    await stand.view.close();
  }
});

for (const verb of ['complete', 'cancel'] as const) {
  test(`a flush of the target that fails at ${verb} is an error, and there is no pivot`, async (t) => {
    const { stand, on } = await mirrorScene(t);
    await put(stand, 0, MIB, 1);
    const job = await stand.mirror();
    await stand.readyOrEnded(job);
    on.target = failing('flush', 1);
    if (verb === 'complete') job.complete();
    else job.cancel({ force: false });
    await ended(job);
    assert.match(job.error ?? '', /the fault of this test/);
    assert.equal(stand.root.path, stand.source);
    on.target = nothing;
    await stand.view.close();
  });
}
