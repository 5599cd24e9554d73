import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  createSharedLatencies,
  LATENCY_BOUNDS,
  LatencyRecorder,
  readLatencies,
} from '../../../src/translation/latency.ts';

const KINDS = 3;

test('each request is in the one bucket whose bounds it lies between, and in the sum', () => {
  const times = [
    0,
    0.0001,
    0.008,
    0.00801,
    0.016,
    1,
    1000,
    16_777.216,
    16_777.3,
    1e9,
    ...LATENCY_BOUNDS.map((b) => b * 1000),
  ];
  for (const ms of times) {
    const shared = createSharedLatencies(1, KINDS);
    new LatencyRecorder(shared, { writer: 0, kinds: KINDS }).record(1, ms);
    const { counts, sumSeconds } = readLatencies(shared, { kind: 1, kinds: KINDS });
    const first = LATENCY_BOUNDS.findIndex((bound) => ms / 1000 <= bound);
    const expected = first < 0 ? LATENCY_BOUNDS.length : first;
    assert.deepEqual(
      counts.flatMap((count, i) => (count === 0 ? [] : [[i, count]])),
      [[expected, 1]],
      `${ms} ms`,
    );
    const told = Math.min(ms / 1000, (2 ** 31 - 1) / 1e6);
    assert.ok(Math.abs(sumSeconds - told) <= 1.1e-6, `${ms} ms: ${sumSeconds}`);
  }
});

test('writers and kinds do not mix, and sums pass 32 bits', () => {
  const shared = createSharedLatencies(2, KINDS);
  const recorders = [0, 1].map((writer) => new LatencyRecorder(shared, { writer, kinds: KINDS }));
  for (const recorder of recorders) for (let i = 0; i < 3; i++) recorder.record(2, 2_000_000);
  recorders[0]?.record(0, 1);
  const total = (kind: number): number =>
    readLatencies(shared, { kind, kinds: KINDS }).counts.reduce((a, b) => a + b, 0);
  assert.deepEqual([0, 1, 2].map(total), [1, 0, 6]);
  assert.equal(readLatencies(shared, { kind: 2, kinds: KINDS }).sumSeconds, 12_000);
});
