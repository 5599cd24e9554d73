import assert from 'node:assert/strict';
import { test } from 'node:test';
import { AheadPolicy, LONG_STEPS, SHORT_STEPS } from '../../../../drivers/file/ahead-policy.ts';

const MIB = 1 << 20;
const MUCH = 2 ** 40;

/** A file that has grown to `to`, in whole pieces of `piece`. */
const grown = (to: number, piece = MIB, from = 0, steps = LONG_STEPS): AheadPolicy => {
  const policy = new AheadPolicy(from, steps);
  for (let at = from; at < to; at += piece) policy.written(at, at + piece, at + piece);
  return policy;
};

test('a file that grew by little has nothing ahead, whatever length it was opened with', () => {
  assert.equal(grown(7 * MIB).next(7 * MIB, MUCH), null);
  assert.equal(grown(107 * MIB, MIB, 100 * MIB).next(107 * MIB, MUCH), null);
  assert.deepEqual(grown(8 * MIB).next(8 * MIB, MUCH), { offset: 8 * MIB, lengthBytes: MIB });
});

test('a step is always ahead, and no more than an eighth of the growth or 8 MiB', () => {
  for (const [length, most] of [
    [8 * MIB, MIB],
    [40 * MIB, 5 * MIB],
    [1000 * MIB, 8 * MIB],
  ] as const) {
    const policy = grown(length);
    let taken = length;
    for (let next = policy.next(length, MUCH); next !== null; next = policy.next(length, MUCH)) {
      assert.equal(next.offset, taken, 'where the last one ended');
      taken += next.lengthBytes;
      policy.taken(next, 0.01);
    }
    assert.ok(taken - length >= MIB && taken - length <= most, `${taken - length} of ${length}`);
  }
});

test('short steps are as many as make a MiB', () => {
  for (const [length, most] of [
    [4 * MIB, 0],
    [8 * MIB, MIB],
    [1000 * MIB, MIB],
  ] as const) {
    const policy = grown(length, MIB, 0, SHORT_STEPS);
    let taken = length;
    for (let next = policy.next(length, MUCH); next !== null; next = policy.next(length, MUCH)) {
      assert.deepEqual(next, { offset: taken, lengthBytes: MIB / 16 });
      taken += next.lengthBytes;
      policy.taken(next, 0);
    }
    assert.equal(taken - length, most);
  }
});

test('slow calls stay short', () => {
  const policy = grown(1000 * MIB);
  for (let length = 1000 * MIB; length < 1100 * MIB; length += MIB) {
    policy.written(length - MIB, length, length);
    const next = policy.next(length, MUCH);
    if (next === null) continue;
    assert.ok(next.lengthBytes <= MIB);
    policy.taken(next, 0.7);
  }
});

test('a sixteenth of what is free, and nothing where that is little', () => {
  assert.equal(grown(1000 * MIB).next(1000 * MIB, 7 * MIB), null);
  assert.deepEqual(grown(1000 * MIB).next(1000 * MIB, 8 * MIB), {
    offset: 1000 * MIB,
    lengthBytes: MIB / 2,
  });
});

test('growth with holes has nothing ahead, and begins to count when it has none', () => {
  const policy = new AheadPolicy(0, LONG_STEPS);
  const cluster = 65_536;
  // A page in each new cluster.
  let length = 0;
  for (let at = 0; at < 64 * MIB; at += cluster) {
    length = at + 4096;
    policy.written(at, length, length);
    assert.equal(policy.next(length, MUCH), null);
  }
  for (const end = length + 16 * MIB; length < end; length += cluster)
    policy.written(length, length + cluster, length + cluster);
  assert.notEqual(policy.next(length, MUCH), null);
});

test('pieces that end out of order are no holes', () => {
  const policy = new AheadPolicy(0, LONG_STEPS);
  for (let at = 0; at < 16 * MIB; at += MIB / 4) {
    policy.written(at + MIB / 8, at + MIB / 4, at + MIB / 4);
    policy.written(at, at + MIB / 8, at + MIB / 4);
  }
  assert.notEqual(policy.next(16 * MIB, MUCH), null);
});

test('what lies below the end is no growth', () => {
  const policy = new AheadPolicy(1000 * MIB, LONG_STEPS);
  for (let at = 0; at < 900 * MIB; at += MIB) policy.written(at, at + MIB, 1000 * MIB);
  assert.equal(policy.next(1000 * MIB, MUCH), null);
});

test('a cut, or another length by no write, begins the looking anew', () => {
  const policy = grown(64 * MIB);
  policy.resized(32 * MIB);
  assert.equal(policy.next(32 * MIB, MUCH), null);
  policy.written(32 * MIB, 33 * MIB, 33 * MIB);
  assert.deepEqual(policy.next(33 * MIB, MUCH), { offset: 33 * MIB, lengthBytes: MIB });
});
