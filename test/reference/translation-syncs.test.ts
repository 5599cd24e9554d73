/**
 * Syncs that workers do, under every interleaving with another worker and the control plane: see translation-protocol.test.ts. Four
 * workers are counted, so that two may sync at the same time as far as their number goes.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Lookup } from '../../src/translation/lookup.ts';
import { Syncs } from '../../src/translation/syncs.ts';
import {
  createSharedTable,
  layoutOf,
  READ,
  type SharedTable,
} from '../../src/translation/table-layout.ts';
import { TranslationTable } from '../../src/translation/translation-table.ts';
import { Interleavings, type Process, type Step } from '../support/interleavings.ts';
import { at, FILE_A, FILE_B, PAGE, PAGE_0, PAGE_BITS, VIEW } from '../support/translation-scene.ts';

const WORKERS = 4;
const EIO = 5;

interface Scene {
  readonly shared: SharedTable;
  readonly host: number[];
}

const sceneOf = (...host: number[]): Scene => ({
  shared: createSharedTable({ workers: WORKERS, slots: 4 }),
  host,
});

const control = (
  { shared }: Scene,
  change: (step: Step, table: TranslationTable) => Promise<void>,
): Process => ({
  name: 'control',
  prepares: true,
  run: async (step) => {
    const table = new TranslationTable(shared, { reportAfterMs: 1000, stuck: () => undefined });
    table.openView(VIEW, PAGE_BITS, 16 * PAGE);
    table.syncWith(VIEW, FILE_A);
    step('prepared', () => 0);
    await change(step, table);
  },
});

/** One FSYNC: `sync` is the system call. Takes what the FSYNC had to cover from `covers`, which it calls before anything else. */
const syncer = (
  { shared }: Scene,
  worker: number,
  sync: (file: number, covers: number) => number,
  covers: () => number = () => 0,
): Process => ({
  name: `syncer ${worker}`,
  run: (step) => {
    const syncs = new Syncs(layoutOf(shared), worker);
    const covered = step('an FSYNC comes', covers);
    const file = syncs.begin(VIEW);
    if (file >= 0) syncs.end(step(`fdatasync ${file}`, () => sync(file, covered)));
  },
});

const explore = ({ shared, host }: Scene, processes: readonly Process[]) =>
  new Interleavings({ words: layoutOf(shared).words, host }, processes).explore();

test('a descriptor is synced by nobody when it is closed', async (t) => {
  const [A_IS_OPEN, B_IS_OPEN] = [0, 1];
  const s = sceneOf(1, 0);
  const pivot = control(s, async (step, table) => {
    await table.closeView(VIEW);
    step('close the one, open the other', () => {
      s.host[A_IS_OPEN] = 0;
      s.host[B_IS_OPEN] = 1;
      return 0;
    });
    table.openView(VIEW, PAGE_BITS, 16 * PAGE);
    table.syncWith(VIEW, FILE_B);
  });
  const sync = (file: number): number => {
    assert.equal(s.host[file === FILE_A ? A_IS_OPEN : B_IS_OPEN], 1, `${file} is closed`);
    return 0;
  };
  const found = await explore(s, [pivot, syncer(s, 0, sync)]);
  t.diagnostic(`${found.states} states, ${found.endStates} ends`);
  assert.ok(found.states > 200);
});

test('after a sync that has failed none succeeds, whoever allows one', async (t) => {
  const [LOST, TOLD] = [0, 1];
  const s = sceneOf(1, 0);
  const flushed = control(s, async (_step, table) => {
    table.syncWith(VIEW, null);
    table.syncWith(VIEW, FILE_A);
  });
  const sync = (): number => {
    // As the kernel does it: the loss is told once.
    if (s.host[LOST] === 1) {
      s.host[LOST] = 0;
      s.host[TOLD] = 1;
      return EIO;
    }
    assert.equal(s.host[TOLD], 0, 'a sync has succeeded that was to bring what is lost');
    return 0;
  };
  const found = await explore(s, [flushed, syncer(s, 0, sync), syncer(s, 1, sync)]);
  t.diagnostic(`${found.states} states, ${found.endStates} ends`);
  assert.ok(found.states > 1000);
});

test('an FSYNC that comes after the answer to a change is not answered by a sync before the change is flushed', async (t) => {
  const [DIRTY, ANSWERED] = [0, 1];
  const s = sceneOf(0, 0);
  const change = control(s, async (step, table) => {
    table.syncWith(VIEW, null);
    step('map a new cluster', () => {
      s.host[DIRTY] = 1;
      return 0;
    });
    step('answer', () => {
      s.host[ANSWERED] = 1;
      return 0;
    });
    step('a checkpoint', () => {
      s.host[DIRTY] = 0;
      return 0;
    });
    table.syncWith(VIEW, FILE_A);
  });
  const sync = (_file: number, covered: number): number => {
    assert.ok(covered === 0 || s.host[DIRTY] === 0, 'the new cluster is in no table of the file');
    return 0;
  };
  const covers = (): number => s.host[ANSWERED] ?? 0;
  const found = await explore(s, [change, syncer(s, 0, sync, covers)]);
  t.diagnostic(`${found.states} states, ${found.endStates} ends`);
  assert.ok(found.states > 100);
});

test('who waits for every worker does not take one that reads for one that syncs', async (t) => {
  const s = sceneOf(1);
  const free: Process = {
    name: 'control',
    prepares: true,
    run: async (step) => {
      const table = new TranslationTable(s.shared, { reportAfterMs: 1000, stuck: () => undefined });
      table.openView(VIEW, PAGE_BITS, 16 * PAGE);
      table.syncWith(VIEW, FILE_A);
      table.fill(VIEW, 0, [at(table.addFile(FILE_A) ?? -1, 0)]);
      step('prepared', () => 0);
      table.revoke(PAGE_0);
      await table.quiesce(null);
      step('free the cluster', () => {
        s.host[0] = 0;
        return 0;
      });
    },
  };
  const both: Process = {
    name: 'worker',
    run: (step) => {
      const layout = layoutOf(s.shared);
      const [syncs, lookup] = [new Syncs(layout, 0), new Lookup(layout, 0)];
      for (const round of [0, 1]) {
        if (syncs.begin(VIEW) >= 0) syncs.end(step(`fdatasync ${round}`, () => 0));
        if (!lookup.begin(VIEW, 0, PAGE, READ)) return;
        const content = step('pread', () => s.host[0] ?? 0);
        assert.equal(content, 1, 'a read saw a cluster that was freed');
        lookup.end();
      }
    },
  };
  const found = await explore(s, [free, both]);
  t.diagnostic(`${found.states} states, ${found.endStates} ends`);
  assert.ok(found.states > 200);
});
