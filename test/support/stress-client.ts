/** A thread that plays the kernel towards one worker: reads any pages, writes and discards its own, and checks. */
import { parentPort, workerData } from 'node:worker_threads';
import { present } from '../../src/base/assert.ts';
import { fillPage, isDiscard, STRESS_PAGE_BYTES, StressVersions, wrongOf } from './stress-pages.ts';
import { StandIn } from './worker-stand.ts';

export interface StressClientSetup {
  readonly end: number;
  readonly client: number;
  readonly clients: number;
  readonly pages: number;
  readonly versions: SharedArrayBuffer;
  readonly requests: number;
  readonly seed: number;
  /** Node of the view; a write to the next one asks the control plane to discard the page. */
  readonly view: number;
}

const setup = workerData as StressClientSetup;
const { client, clients, pages, view } = setup;
const kernel = new StandIn(setup.end, client);
const versions = new StressVersions(pages, setup.versions);
const MAX_READ_PAGES = 4;

let state = setup.seed * 2 + 1;
/** 0 to `bound` - 1 (a linear congruential generator: its high bits are good enough here). */
const below = (bound: number): number => {
  state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
  return Math.floor((state / 2 ** 32) * bound);
};

const readPages = (): string | null => {
  const count = 1 + below(MAX_READ_PAGES);
  const first = below(pages - count + 1);
  const lows = Array.from({ length: count }, (_, i) => versions.written(first + i));
  kernel.transfer('READ', view, first * STRESS_PAGE_BYTES, count * STRESS_PAGE_BYTES);
  for (const [i, low] of lows.entries()) {
    // A copy: the words of a reply are not aligned.
    const bytes = kernel.incoming.slice(i * STRESS_PAGE_BYTES, (i + 1) * STRESS_PAGE_BYTES);
    const wrong = wrongOf(bytes, first + i, low, versions.begun(first + i));
    if (wrong !== null) return wrong;
  }
  return null;
};

const page = new Uint8Array(STRESS_PAGE_BYTES);
const writePage = (): void => {
  const own = below(Math.floor(pages / clients)) * clients + client;
  const version = versions.begin(own);
  fillPage(page, own, version);
  kernel.outgoing.set(page);
  const node = isDiscard(version) ? view + 1 : view;
  kernel.transfer('WRITE', node, own * STRESS_PAGE_BYTES, STRESS_PAGE_BYTES);
  versions.end(own);
};

const run = (): string | null => {
  for (let i = 0; i < setup.requests; i++) {
    if (below(2) === 0) writePage();
    else {
      const wrong = readPages();
      if (wrong !== null) return wrong;
    }
  }
  return null;
};

let wrong: string | null;
try {
  wrong = run();
} catch (error) {
  wrong = String(error);
}
present(parentPort, 'a client has a parent').postMessage(wrong);
