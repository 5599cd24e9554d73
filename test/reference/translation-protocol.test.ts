/**
 * The data plane's protocol, proven over every interleaving of two workers and the control plane on two pages. The
 * code that runs is the code of `src/translation/`; each atomic operation is a step of its own.
 *
 * The host: cluster k of file f holds the page `content`, or is free. A read must see a page that it asked for; a
 * write must not land in a cluster that was freed, or that was moved after its copy was taken.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Lookup, ZERO_RUN } from '../../src/translation/lookup.ts';
import {
  createSharedTable,
  ENTRIES_PER_SLICE,
  layoutOf,
  READ,
  type SharedTable,
  WRITE,
} from '../../src/translation/table-layout.ts';
import { type Translation, TranslationTable } from '../../src/translation/translation-table.ts';
import { Interleavings, type Process, type Step } from '../support/interleavings.ts';

const VIEW = 2;
const PAGE_BITS = 12;
const PAGE = 2 ** PAGE_BITS;
/** Host descriptors that the translations name; nothing opens them here. */
const FILE_A = 70;
const FILE_B = 71;

/** `host[k]`: what cluster k holds, by page number + 1; FREE, or MOVED once its copy was taken. */
const FREE = -1;
const MOVED = -2;

const at = (file: number, cluster: number, permissions = READ | WRITE): Translation => ({
  permissions,
  file,
  hostOffset: cluster * PAGE,
});

interface Scene {
  readonly shared: SharedTable;
  readonly host: number[];
  /** Clusters by descriptor and offset: a descriptor that holds no such cluster is a torn translation. */
  readonly clusterOf: (descriptor: number, hostOffset: number) => number;
}

/** Clusters 0 and 1 lie in file A, 2 and 3 in file B. */
const scene = (slots = 4): Scene => ({
  shared: createSharedTable({ workers: 2, slots }),
  host: [1, 2, FREE, FREE],
  clusterOf: (descriptor, hostOffset) => {
    const cluster = hostOffset / PAGE;
    const right = descriptor === (cluster < 2 ? FILE_A : FILE_B);
    assert.ok(
      right,
      `cluster ${cluster} does not lie in descriptor ${descriptor}: a torn translation`,
    );
    return cluster;
  },
});

/** One request of a worker for `pages` pages from `page` on. */
const reader = (s: Scene, worker: number, page: number, pages = 1): Process => ({
  name: `reader ${worker}`,
  run: (step) => {
    const lookup = new Lookup(layoutOf(s.shared), worker);
    if (!lookup.begin(VIEW, page * PAGE, pages * PAGE, READ)) return;
    for (let run = 0, seen = page; run < lookup.count; run++) {
      for (let done = 0; done < (lookup.lengths[run] ?? 0); done += PAGE, seen++) {
        const file = lookup.files[run] ?? 0;
        if (file === ZERO_RUN) continue;
        const cluster = s.clusterOf(file, (lookup.hostOffsets[run] ?? 0) + done);
        const content = step(`pread cluster ${cluster}`, () => s.host[cluster] ?? FREE);
        assert.ok(
          content === seen + 1 || content === MOVED,
          `a read of page ${seen} saw cluster ${cluster}, which holds ${content}`,
        );
      }
    }
    lookup.end();
  },
});

const writer = (s: Scene, worker: number, page: number): Process => ({
  name: `writer ${worker}`,
  run: (step) => {
    const lookup = new Lookup(layoutOf(s.shared), worker);
    if (!lookup.begin(VIEW, page * PAGE, PAGE, WRITE)) return;
    const cluster = s.clusterOf(lookup.files[0] ?? 0, lookup.hostOffsets[0] ?? 0);
    const content = step(`pwrite cluster ${cluster}`, () => s.host[cluster] ?? FREE);
    assert.equal(content, page + 1, `a write of page ${page} landed in cluster ${cluster}`);
    lookup.end();
  },
});

const openTable = (s: Scene): { table: TranslationTable; a: number; b: number } => {
  const table = new TranslationTable(s.shared, { reportAfterMs: 1000, stuck: () => undefined });
  const a = table.addFile(FILE_A) ?? -1;
  const b = table.addFile(FILE_B) ?? -1;
  table.openView(VIEW, PAGE_BITS, 2 * ENTRIES_PER_SLICE * PAGE);
  return { table, a, b };
};

const PAGE_0 = { view: VIEW, firstPage: 0, lastPage: 0 };

type Change = (step: Step, table: TranslationTable, a: number, b: number) => Promise<void>;

const control = (s: Scene, change: Change): Process => ({
  name: 'control',
  prepares: true,
  run: async (step) => {
    const { table, a, b } = openTable(s);
    table.fill(VIEW, 0, [at(a, 0), at(a, 1)]);
    step('prepared', () => 0);
    await change(step, table, a, b);
  },
});

/** Page 0 moves from cluster 0 to cluster 2: the old place is copied, freed, and used for page 1's neighbour. */
const move =
  (s: Scene): Change =>
  async (step, table, _a, b) => {
    table.revoke(PAGE_0);
    await table.quiesce(PAGE_0);
    step('copy cluster 0 to 2', () => {
      s.host[2] = 1;
      s.host[0] = MOVED;
      return 0;
    });
    table.fill(VIEW, 0, [at(b, 2)]);
    step('reuse cluster 0', () => {
      s.host[0] = 99;
      return 0;
    });
  };

/** Page 0 is unmapped (a discard) and mapped elsewhere at once; its old cluster is freed only after a quiesce. */
const discardAndRewrite =
  (s: Scene): Change =>
  async (step, table, _a, b) => {
    table.revoke(PAGE_0);
    step('allocate cluster 2', () => {
      s.host[2] = 1;
      return 0;
    });
    table.fill(VIEW, 0, [at(b, 2)]);
    await table.quiesce(PAGE_0);
    step('free cluster 0', () => {
      s.host[0] = FREE;
      return 0;
    });
  };

const cases: readonly [string, (s: Scene) => Change, number][] = [
  ['a moved page', move, 2],
  ['a discarded and rewritten page', discardAndRewrite, 1],
];

for (const [what, change, pages] of cases) {
  test(`${what}: no read sees a freed cluster, no write lands in it`, async (t) => {
    const s = scene();
    const words = layoutOf(s.shared).words;
    const processes = [control(s, change(s)), reader(s, 0, 0, pages), writer(s, 1, 0)];
    const found = await new Interleavings({ words, host: s.host }, processes).explore();
    t.diagnostic(`${found.states} states, ${found.endStates} ends`);
    assert.ok(found.states > 1000, 'the search went through the interleavings');
  });
}

test('two writers of one page: neither lands in a moved cluster', async (t) => {
  const s = scene();
  const words = layoutOf(s.shared).words;
  const processes = [control(s, move(s)), writer(s, 0, 0), writer(s, 1, 0)];
  const found = await new Interleavings({ words, host: s.host }, processes).explore();
  t.diagnostic(`${found.states} states, ${found.endStates} ends`);
  assert.ok(found.states > 1000);
});

test('the last page of a request that covers several is as safe as the first', async (t) => {
  const s = scene();
  const words = layoutOf(s.shared).words;
  const page1 = { view: VIEW, firstPage: 1, lastPage: 1 };
  const moveSecond: Change = async (step, table, _a, b) => {
    table.revoke(page1);
    await table.quiesce(page1);
    step('copy cluster 1 to 3, and reuse it', () => {
      s.host[3] = 2;
      s.host[1] = 99;
      return 0;
    });
    table.fill(VIEW, 1, [at(b, 3)]);
  };
  const processes = [control(s, moveSecond), reader(s, 0, 0, 2)];
  const found = await new Interleavings({ words, host: s.host }, processes).explore();
  t.diagnostic(`${found.states} states, ${found.endStates} ends`);
  assert.ok(found.states > 500);
});

test('an entry that is filled over a live one is never read in halves', async (t) => {
  const s = scene();
  const words = layoutOf(s.shared).words;
  const replace: Change = async (step, table, _a, b) => {
    step('copy cluster 0 to 2', () => {
      s.host[2] = 1;
      return 0;
    });
    table.fill(VIEW, 0, [at(b, 2)]);
  };
  const processes = [control(s, replace), reader(s, 0, 0), reader(s, 1, 0, 2)];
  const found = await new Interleavings({ words, host: s.host }, processes).explore();
  t.diagnostic(`${found.states} states, ${found.endStates} ends`);
  assert.ok(found.states > 500);
});

test('a view that was opened anew with larger pages is not read with the old page size', async (t) => {
  const s = scene();
  const words = layoutOf(s.shared).words;
  const reopen: Change = async (step, table, a, b) => {
    await table.closeView(VIEW);
    step('pages 0 and 1 are in clusters 2 and 3 now', () => {
      s.host[2] = 1;
      s.host[3] = 2;
      s.host[1] = 99;
      return 0;
    });
    table.openView(VIEW, PAGE_BITS + 1, 4 * PAGE);
    table.fill(VIEW, 0, [at(b, 2), at(a, 1)]);
  };
  const processes = [control(s, reopen), reader(s, 0, 1)];
  const found = await new Interleavings({ words, host: s.host }, processes).explore();
  t.diagnostic(`${found.states} states, ${found.endStates} ends`);
  assert.ok(found.states > 500);
});

test('a closed view: nobody uses its files afterwards', async (t) => {
  const s = scene();
  const words = layoutOf(s.shared).words;
  const close: Change = async (step, table) => {
    await table.closeView(VIEW);
    step('close the host files', () => {
      s.host.fill(FREE);
      return 0;
    });
  };
  const processes = [control(s, close), reader(s, 0, 0, 2), writer(s, 1, 1)];
  const found = await new Interleavings({ words, host: s.host }, processes).explore();
  t.diagnostic(`${found.states} states, ${found.endStates} ends`);
  assert.ok(found.states > 1000);
});

test('a slot whose slice was evicted is used again only when nobody reads the old slice', async (t) => {
  const s = scene(2);
  const words = layoutOf(s.shared).words;
  // Page 512 is the first of slice 1, page 1024 of slice 2; cluster 1 holds the page that slice 2 begins with.
  s.host[1] = 1025;
  const evict: Change = async (_step, table, a, b) => {
    table.fill(VIEW, ENTRIES_PER_SLICE, [at(b, 3)]);
    // The eviction waits for the workers, not we: time for it to have made the slot free.
    for (let tick = 0; tick < 30; tick++) await null;
    table.fill(VIEW, 2 * ENTRIES_PER_SLICE, [at(a, 1)]);
  };
  const filled: Process = {
    name: 'control',
    prepares: true,
    run: async (step) => {
      const { table, a, b } = openTable(s);
      table.fill(VIEW, 0, [at(a, 0)]);
      step('prepared', () => 0);
      await evict(step, table, a, b);
    },
  };
  const processes = [filled, reader(s, 0, 0)];
  const found = await new Interleavings({ words, host: s.host }, processes).explore();
  t.diagnostic(`${found.states} states, ${found.endStates} ends`);
  assert.ok(found.states > 1000);
});
