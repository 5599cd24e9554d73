/**
 * The data plane's real workers, reading and writing in place as fast as they can, against a control plane that keeps
 * moving, freezing, discarding and reusing the same clusters under them.
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { setImmediate } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { COUNTER, sumCounter } from '../../src/translation/counters.ts';
import { createSharedTable } from '../../src/translation/table-layout.ts';
import { RemappingEngine } from '../support/remapping-engine.ts';
import { countOf, SEED } from '../support/run-parameters.ts';
import { type Cleanup, scratchDirectory } from '../support/scratch.ts';
import type { StressClientSetup } from '../support/stress-client.ts';
import { StressVersions } from '../support/stress-pages.ts';
import { startWorkers } from '../support/worker-stand.ts';

const WORKERS = 3;
const PAGES = 48;
const VIEW = 7;
const REQUESTS = 20_000;

interface Outcome {
  readonly findings: readonly string[];
  readonly remapped: number;
  readonly requests: number;
  readonly hits: number;
}

const runClient = (setup: StressClientSetup): Promise<string | null> =>
  new Promise((resolve, reject) => {
    const url = new URL('../support/stress-client.js', import.meta.url);
    const thread = new Worker(url, { workerData: setup });
    thread.once('message', resolve);
    thread.once('error', reject);
  });

/** Remaps pages one after the other until the clients have ended. */
const remapUntil = async (engine: RemappingEngine, ended: () => boolean): Promise<void> => {
  for (let turn = 0; !ended(); turn++) {
    await engine.remap((turn * 17) % PAGES, turn % 3 === 0 ? 'freeze' : 'move');
    // Faults are served between two remaps.
    if (turn % 4 === 0) await setImmediate();
  }
};

const stress = async (t: Cleanup, requests: number, waits: boolean): Promise<Outcome> => {
  const table = createSharedTable({ workers: WORKERS, slots: 4 });
  const path = join(await scratchDirectory(t), 'clusters');
  const engine = new RemappingEngine({ path, pages: PAGES, table, view: VIEW, waits });
  const failures: string[] = [];
  const stand = startWorkers({
    workers: WORKERS,
    table,
    faulted: (request, answer) => {
      engine.serve(request, answer).catch((error: unknown) => failures.push(String(error)));
    },
  });
  const versions = new StressVersions(PAGES);
  let running = WORKERS;
  const clients = stand.ends.map(async (end, client) => {
    const wrong = await runClient({
      end,
      client,
      clients: WORKERS,
      pages: PAGES,
      versions: versions.shared,
      requests,
      seed: SEED + client,
      view: VIEW,
    });
    running--;
    return wrong;
  });
  const remapping = remapUntil(engine, () => running === 0);
  const wrongs = await Promise.all(clients);
  await remapping;
  await stand.close();
  engine.close();
  const findings = [...wrongs.filter((w) => w !== null), ...engine.findings, ...failures];
  return {
    findings,
    remapped: engine.remapped,
    requests: sumCounter(stand.counters, COUNTER.requests),
    hits: sumCounter(stand.counters, COUNTER.hits),
  };
};

test(`no read sees a freed cluster and no write lands in one, under constant remapping (seed ${SEED})`, {
  timeout: 300_000,
}, async (t) => {
  const requests = countOf(REQUESTS);
  const outcome = await stress(t, requests, true);
  assert.deepEqual(outcome.findings, []);
  assert.equal(outcome.requests, WORKERS * requests);
  assert.ok(outcome.hits > outcome.requests / 4, `${outcome.hits} hits of ${outcome.requests}`);
  assert.ok(outcome.remapped > requests / 10, `${outcome.remapped} pages were remapped`);
});

test('the stress notices a control plane that frees without waiting for the workers', {
  timeout: 300_000,
}, async (t) => {
  for (let round = 0; round < 20; round++) {
    const { findings } = await stress(t, REQUESTS, false);
    if (findings.length > 0) return;
  }
  assert.fail('20 rounds without waiting, and nothing was found');
});
