/**
 * Copying what is dirty, round after round, while the data plane's real workers write in place as fast as they can: a write that
 * no round has copied is in the bitmap. The bitmap begins to record while they write.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate } from 'node:timers/promises';
import { guestOffset } from '../../src/base/units.ts';
import type { Node } from '../../src/block/node.ts';
import { countOf, SEED } from '../support/run-parameters.ts';
import type { Cleanup } from '../support/scratch.ts';
import { STRESS_BYTES, startStressGuests } from '../support/stress-guests.ts';
import { STRESS_PAGE_BYTES } from '../support/stress-pages.ts';

const REQUESTS = 6000;

interface Case {
  readonly format: 'raw' | 'qcow2';
  readonly granularityBytes: number;
  /** Whether a round waits before it reads. */
  readonly waits: boolean;
}

interface Outcome {
  /** Of the clients; then pages that the copy has not as the image has them. */
  readonly findings: readonly string[];
  readonly rounds: number;
  readonly requests: number;
  readonly hits: number;
}

/** One round over everything that is dirty. */
const copyRound = async (
  root: Node,
  bitmap: Awaited<ReturnType<Node['dirtyBitmaps']['start']>>,
  copy: Uint8Array,
  waits: boolean,
): Promise<void> => {
  for (let at = 0; ; ) {
    const found = bitmap.content.nextDirty(at);
    if (found === null) return;
    const { start, lengthBytes } = found;
    root.dirtyBitmaps.clear(bitmap, start, lengthBytes);
    if (waits) await root.quiesce();
    await root.read(guestOffset(start), copy.subarray(start, start + lengthBytes));
    at = start + lengthBytes;
  }
};

const run = async (t: Cleanup, c: Case, requests: number): Promise<Outcome> => {
  const guests = await startStressGuests(t, c.format, requests);
  const { root } = guests;
  const bitmap = await root.dirtyBitmaps.start(c.granularityBytes);
  bitmap.content.markAll();
  const copy = new Uint8Array(STRESS_BYTES);
  let rounds = 0;
  for (; guests.isRunning(); rounds++) {
    await copyRound(root, bitmap, copy, c.waits);
    await setImmediate();
  }
  const findings = await guests.findings();
  await copyRound(root, bitmap, copy, c.waits);
  const source = new Uint8Array(STRESS_BYTES);
  await root.read(guestOffset(0), source);
  await guests.close();
  return {
    findings: [...findings, ...differences(source, copy)],
    rounds,
    ...guests.counts(),
  };
};

const differences = (source: Uint8Array, copy: Uint8Array): string[] => {
  const found: string[] = [];
  for (let at = 0; at < source.length; at += STRESS_PAGE_BYTES) {
    const end = at + STRESS_PAGE_BYTES;
    if (Buffer.compare(source.subarray(at, end), copy.subarray(at, end)) === 0) continue;
    found.push(`page ${at / STRESS_PAGE_BYTES} was not copied after its last write`);
  }
  return found;
};

const CASES: readonly Omit<Case, 'waits'>[] = [
  { format: 'raw', granularityBytes: 4096 },
  { format: 'raw', granularityBytes: 16_384 },
  // Clusters of 64 KiB: the view is paged anew.
  { format: 'qcow2', granularityBytes: 4096 },
];

for (const c of CASES) {
  const name = `${c.format}, granules of ${c.granularityBytes} bytes`;
  test(`rounds of copying miss no write of the workers (${name}, seed ${SEED})`, {
    timeout: 300_000,
  }, async (t) => {
    const outcome = await run(t, { ...c, waits: true }, countOf(REQUESTS));
    assert.deepEqual(outcome.findings, []);
    assert.ok(outcome.rounds > 3, `${outcome.rounds} rounds`);
    assert.ok(outcome.hits > 100, `${outcome.hits} hits of ${outcome.requests}`);
    t.diagnostic(`${outcome.rounds} rounds, ${outcome.hits} hits of ${outcome.requests} requests`);
  });
}

test('a copy that does not wait for the workers is noticed', { timeout: 300_000 }, async (t) => {
  for (let attempt = 0; attempt < 20; attempt++) {
    const c: Case = { format: 'raw', granularityBytes: 4096, waits: false };
    const { findings } = await run(t, c, REQUESTS);
    if (findings.length > 0) return;
  }
  assert.fail('20 runs without waiting, and nothing was missed');
});
