/**
 * Copying what is dirty, round after round, while the data plane's real workers write in place as fast as they can: a write that
 * no round has copied is in the bitmap. The bitmap begins to record while they write.
 */
import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { setImmediate } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import type { Entry } from '../../mount/directory.ts';
import { OPCODE, READ_IN } from '../../mount/kernel/abi.ts';
import { NodeTranslations } from '../../mount/kernel/node-translations.ts';
import { type FuseRequest, REPLY_BODY_AT } from '../../mount/kernel/request.ts';
import { silentLog } from '../../src/base/log.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { Node } from '../../src/block/node.ts';
import { View } from '../../src/block/view.ts';
import { COUNTER, sumCounter } from '../../src/translation/counters.ts';
import { createSharedTable } from '../../src/translation/table-layout.ts';
import { TranslationTable } from '../../src/translation/translation-table.ts';
import { assertClean, qemuImg } from '../support/qemu-img.ts';
import { countOf, SEED } from '../support/run-parameters.ts';
import { type Cleanup, scratchDirectory } from '../support/scratch.ts';
import type { StressClientSetup } from '../support/stress-client.ts';
import { STRESS_PAGE_BYTES, StressVersions } from '../support/stress-pages.ts';
import { testGraph } from '../support/test-graph.ts';
import { startWorkers, type WorkerStand } from '../support/worker-stand.ts';

const WORKERS = 3;
const PAGES = 48;
const VIEW = 7;
const BYTES = PAGES * STRESS_PAGE_BYTES;
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

const makeImage = async (t: Cleanup, format: Case['format']): Promise<string> => {
  const path = join(await scratchDirectory(t), `disk.${format}`);
  if (format === 'raw') await writeFile(path, new Uint8Array(BYTES));
  else await qemuImg(['create', '-q', '-f', 'qcow2', path, String(BYTES)]);
  return path;
};

/** Serves what no worker can, as the session does. */
const serve = async (
  request: FuseRequest,
  entry: Entry,
  translations: NodeTranslations,
): Promise<number> => {
  const { view } = entry;
  const offset = request.u64(READ_IN.offset);
  const size = request.u32(READ_IN.size);
  const at = guestOffset(offset);
  if (request.opcode === OPCODE.READ) {
    request.makeRoom(size);
    const got = await view.read(at, request.payload(size));
    translations.filled(entry, offset, got);
    return got;
  }
  if (request.nodeId !== VIEW) await view.punchHole(at, size);
  else {
    await view.write(at, request.payload(size));
    translations.filled(entry, offset, size);
  }
  request.reply.setUint32(REPLY_BODY_AT, size, true);
  return 8;
};

const runClients = (stand: WorkerStand, requests: number): Promise<(string | null)[]> => {
  const versions = new StressVersions(PAGES);
  return Promise.all(
    stand.ends.map(
      (end, client) =>
        new Promise<string | null>((resolve, reject) => {
          const setup: StressClientSetup = {
            end,
            client,
            clients: WORKERS,
            pages: PAGES,
            versions: versions.shared,
            requests,
            seed: SEED + client,
            view: VIEW,
          };
          const url = new URL('../support/stress-client.js', import.meta.url);
          const thread = new Worker(url, { workerData: setup });
          thread.once('message', resolve);
          thread.once('error', reject);
        }),
    ),
  );
};

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
  const path = await makeImage(t, c.format);
  const graph = await testGraph({ directory: join(path, '..') });
  const view = new View({
    name: 'disk.raw',
    readOnlyReason: null,
    allowShrink: false,
    log: silentLog,
    open: () => graph.open({ path, format: c.format, readOnly: false }),
    close: (root) => graph.close(root),
  });
  const root = await view.open();
  const table = createSharedTable({ workers: WORKERS, slots: 4 });
  const options = { reportAfterMs: 10_000, stuck: () => undefined };
  const translations = new NodeTranslations(new TranslationTable(table, options));
  const entry = { nodeId: VIEW, name: 'disk.raw', view } as unknown as Entry;
  const failures: string[] = [];
  const stand = startWorkers({
    workers: WORKERS,
    table,
    faulted: (request, answer) => {
      serve(request, entry, translations).then(answer, (error: unknown) =>
        failures.push(String(error)),
      );
    },
  });
  let running = true;
  const clients = runClients(stand, requests).finally(() => {
    running = false;
  });
  while (running && sumCounter(stand.counters, COUNTER.hits) < 100) await setImmediate();
  const bitmap = await root.dirtyBitmaps.start(c.granularityBytes);
  bitmap.content.markAll();
  const copy = new Uint8Array(BYTES);
  let rounds = 0;
  for (; running; rounds++) {
    await copyRound(root, bitmap, copy, c.waits);
    await setImmediate();
  }
  const wrongs = await clients;
  await copyRound(root, bitmap, copy, c.waits);
  const source = new Uint8Array(BYTES);
  await root.read(guestOffset(0), source);
  await stand.close();
  await view.close();
  if (c.format === 'qcow2') await assertClean(path);
  return {
    findings: [...wrongs.filter((w) => w !== null), ...failures, ...differences(source, copy)],
    rounds,
    requests: sumCounter(stand.counters, COUNTER.requests),
    hits: sumCounter(stand.counters, COUNTER.hits),
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
