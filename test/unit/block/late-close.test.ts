import assert from 'node:assert/strict';
import { test } from 'node:test';
import { LateClose } from '../../../src/block/late-close.ts';

test('what is used is closed when its last user ends, once, and nobody waits for that', async () => {
  const late = new LateClose();
  const [first, second] = [late.hold(), late.hold()];
  let closings = 0;
  await late.close(async () => {
    closings++;
    throw new Error('nobody is told');
  });
  first();
  first();
  assert.equal(closings, 0);
  second();
  second();
  assert.equal(closings, 1);
});

test('what nobody uses is closed at once, and who closes it is told of errors', async () => {
  const late = new LateClose();
  late.hold()();
  await assert.rejects(
    late.close(async () => {
      throw new Error('told');
    }),
    /told/,
  );
});
