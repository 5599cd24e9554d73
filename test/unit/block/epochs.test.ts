import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { Epochs, type EpochToken } from '../../../src/block/epochs.ts';
import { countOf, SEED } from '../../support/run-parameters.ts';

test('quiesce waits for what had entered, and not for what enters later', async () => {
  const epochs = new Epochs();
  const before = epochs.enter();
  let done = false;
  const quiesced = epochs.quiesce().then(() => {
    done = true;
  });
  const after = epochs.enter();
  await new Promise((resolve) => setImmediate(resolve));
  assert.equal(done, false);
  epochs.leave(before);
  await quiesced;
  assert.equal(epochs.active, 1);
  epochs.leave(after);
});

test('no grace period ends before everything that was in it has left', async () => {
  const steps = fc.array(fc.oneof(fc.constant('enter'), fc.constant('quiesce'), fc.nat(20)), {
    maxLength: 60,
  });
  await fc.assert(
    fc.asyncProperty(steps, async (script) => {
      const epochs = new Epochs();
      const inside: EpochToken[] = [];
      const waits: { readonly pending: Set<EpochToken>; ended: boolean }[] = [];
      for (const step of script) {
        if (step === 'enter') inside.push(epochs.enter());
        else if (step === 'quiesce') {
          const wait = { pending: new Set(inside), ended: false };
          // Tokens of one epoch are the same object: counted by how many of them are still inside.
          const quiesced = epochs.quiesce().then(() => {
            wait.ended = true;
          });
          if (inside.length === 0) await quiesced;
          waits.push(wait);
        } else if (inside.length > 0) {
          const [token] = inside.splice(Number(step) % inside.length, 1);
          if (token !== undefined) epochs.leave(token);
        }
        await null;
        for (const wait of waits) {
          const stillInside = inside.some((token) => wait.pending.has(token));
          if (stillInside) assert.equal(wait.ended, false);
        }
      }
      for (const token of inside) epochs.leave(token);
      await new Promise((resolve) => setImmediate(resolve));
      assert.ok(waits.every((w) => w.ended));
    }),
    { seed: SEED, numRuns: countOf(100) },
  );
});
