/**
 * An image under the data plane's real workers, which threads that play the kernel keep busy: each reads any page, writes and
 * discards its own, and checks what it reads (stress-client.ts).
 */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import type { Entry } from '../../mount/directory.ts';
import { OPCODE, READ_IN } from '../../mount/kernel/abi.ts';
import type { NodeTranslations } from '../../mount/kernel/node-translations.ts';
import { type FuseRequest, REPLY_BODY_AT } from '../../mount/kernel/request.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { Graph } from '../../src/block/graph.ts';
import type { Node } from '../../src/block/node.ts';
import type { View } from '../../src/block/view.ts';
import { COUNTER, sumCounter } from '../../src/translation/counters.ts';
import { imageView } from './image-view.ts';
import { assertClean, qemuImg } from './qemu-img.ts';
import { SEED } from './run-parameters.ts';
import { type Cleanup, scratchDirectory } from './scratch.ts';
import type { StressClientSetup } from './stress-client.ts';
import { STRESS_PAGE_BYTES, StressVersions } from './stress-pages.ts';
import { testGraph } from './test-graph.ts';
import { viewTranslations } from './view-translations.ts';
import { startWorkers, type WorkerStand } from './worker-stand.ts';

const WORKERS = 3;
const VIEW = 7;
/** Clients begin to be answered by workers alone after this. */
const WARM_HITS = 100;

export const STRESS_PAGES = 48;
export const STRESS_BYTES = STRESS_PAGES * STRESS_PAGE_BYTES;

export interface StressGuests {
  readonly directory: string;
  readonly graph: Graph;
  readonly view: View;
  readonly root: Node;
  readonly versions: StressVersions;
  /** Whether the clients still send. */
  isRunning(): boolean;
  /** What the clients found wrong, and what could not be served; once they have ended. */
  findings(): Promise<readonly string[]>;
  counts(): { readonly requests: number; readonly hits: number };
  /** Ends the workers, closes the image, and has QEMU look at it. */
  close(): Promise<void>;
}

/** Resolves when the clients run, and workers answer some of what they ask for. */
export const startStressGuests = async (
  t: Cleanup,
  format: 'raw' | 'qcow2',
  requests: number,
): Promise<StressGuests> => {
  const directory = await scratchDirectory(t);
  const path = join(directory, `disk.${format}`);
  if (format === 'raw') await writeFile(path, new Uint8Array(STRESS_BYTES));
  else await qemuImg(['create', '-q', '-f', 'qcow2', path, String(STRESS_BYTES)]);
  const graph = await testGraph({ directory });
  const view = imageView(graph, { path, format });
  const root = await view.open();
  const { table, translations, entry } = viewTranslations(view, VIEW, WORKERS);
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
  const versions = new StressVersions(STRESS_PAGES);
  let running = true;
  const clients = runClients(stand, versions, requests).finally(() => {
    running = false;
  });
  while (running && sumCounter(stand.counters, COUNTER.hits) < WARM_HITS) await setImmediate();
  return {
    directory,
    graph,
    view,
    root,
    versions,
    isRunning: () => running,
    findings: async () => [...(await clients).filter((w) => w !== null), ...failures],
    counts: () => ({
      requests: sumCounter(stand.counters, COUNTER.requests),
      hits: sumCounter(stand.counters, COUNTER.hits),
    }),
    close: async () => {
      await stand.close();
      await view.close();
      if (format === 'qcow2') await assertClean(path);
    },
  };
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

const runClients = (
  stand: WorkerStand,
  versions: StressVersions,
  requests: number,
): Promise<(string | null)[]> =>
  Promise.all(
    stand.ends.map(
      (end, client) =>
        new Promise<string | null>((resolve, reject) => {
          const setup: StressClientSetup = {
            end,
            client,
            clients: WORKERS,
            pages: STRESS_PAGES,
            versions: versions.shared,
            requests,
            seed: SEED + client,
            view: VIEW,
          };
          const url = new URL('./stress-client.js', import.meta.url);
          const thread = new Worker(url, { workerData: setup });
          thread.once('message', resolve);
          thread.once('error', reject);
        }),
    ),
  );
