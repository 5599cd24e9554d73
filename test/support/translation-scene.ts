/**
 * What the translation protocol is explored on: two workers, the control plane, and two pages.
 *
 * The host: cluster k of file f holds the page `content`, or is free. A read must see a page that it asked for; a
 * write must not land in a cluster that was freed, or that was moved after its copy was taken.
 */
import assert from 'node:assert/strict';
import type { Translation } from '../../src/translation/entry-writer.ts';
import { Lookup, ZERO_RUN } from '../../src/translation/lookup.ts';
import {
  createSharedTable,
  ENTRIES_PER_SLICE,
  layoutOf,
  READ,
  type SharedTable,
  WRITE,
} from '../../src/translation/table-layout.ts';
import { TranslationTable } from '../../src/translation/translation-table.ts';
import type { Process, Step, World } from './interleavings.ts';

export const VIEW = 2;
export const PAGE_BITS = 12;
export const PAGE = 2 ** PAGE_BITS;
/** Host descriptors that the translations name; nothing opens them here. */
export const FILE_A = 70;
export const FILE_B = 71;

/** `host[k]`: what cluster k holds, by page number + 1; FREE, or MOVED once its copy was taken. */
export const FREE = -1;
export const MOVED = -2;

export const at = (file: number, cluster: number, permissions = READ | WRITE): Translation => ({
  permissions,
  file,
  hostOffset: cluster * PAGE,
});

export interface Scene {
  readonly shared: SharedTable;
  readonly host: number[];
  /** Clusters by descriptor and offset: a descriptor that holds no such cluster is a torn translation. */
  readonly clusterOf: (descriptor: number, hostOffset: number) => number;
}

/** What is explored: a slice that no worker can find yet is filled by ordinary stores. */
export const worldOf = ({ shared, host }: Scene): World => {
  const { words, firstSlot } = layoutOf(shared);
  return { words, ordinaryFrom: firstSlot, host };
};

/** Clusters 0 and 1 lie in file A, 2 and 3 in file B. */
export const scene = (slots = 4): Scene => ({
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
export const reader = (s: Scene, worker: number, page: number, pages = 1): Process => ({
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

export const writer = (s: Scene, worker: number, page: number): Process => ({
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

export const openTable = (s: Scene): { table: TranslationTable; a: number; b: number } => {
  const table = new TranslationTable(s.shared, { reportAfterMs: 1000, stuck: () => undefined });
  const a = table.addFile(FILE_A) ?? -1;
  const b = table.addFile(FILE_B) ?? -1;
  table.openView(VIEW, PAGE_BITS, 2 * ENTRIES_PER_SLICE * PAGE);
  return { table, a, b };
};

export const PAGE_0 = { view: VIEW, firstPage: 0, lastPage: 0 };

export type Change = (step: Step, table: TranslationTable, a: number, b: number) => Promise<void>;

export const control = (s: Scene, change: Change): Process => ({
  name: 'control',
  prepares: true,
  run: async (step) => {
    const { table, a, b } = openTable(s);
    table.fill(VIEW, 0, [at(a, 0), at(a, 1)]);
    step('prepared', () => 0);
    await change(step, table, a, b);
  },
});
