/**
 * A kill while the restart journal cannot be written, or could not for a while, because the runtime directory is full: checkpoints take
 * its place, and every answered change is there, also one that needed nothing but what another one had made.
 */
import assert from 'node:assert/strict';
import { truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { BlockError } from '../../src/base/block-error.ts';
import { createLog } from '../../src/base/log.ts';
import { seededRandom } from '../../src/base/random.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { Node } from '../../src/block/node.ts';
import type { RestartJournal } from '../../src/block/restart-journal.ts';
import { writeAddCow } from '../support/add-cow-file.ts';
import { delayedFile } from '../support/delayed-file.ts';
import { fullJournal } from '../support/full-journal.ts';
import { qemuImg } from '../support/qemu-img.ts';
import { countOf, SEED } from '../support/run-parameters.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';

const KIB = 1024;
const CLUSTER = 4 * KIB;
const BYTES = 512 * KIB;
const SLOT = 512;
const BASE_FILL = 0xbb;

type Format = 'qcow2' | 'add-cow';
const FORMATS: readonly Format[] = ['qcow2', 'add-cow'];

interface Scene {
  readonly node: Node;
  /** Whether the journal can be written. */
  isFull: boolean;
  /** Before a flush of any file. */
  onFlush: () => Promise<void>;
  /** Ends everything at once; `judge` sees what the next engine opens. */
  readonly kill: (judge: (next: Node) => Promise<void>) => Promise<void>;
}

/** Engines that were killed: what they have open stays so. */
const killed: Node[] = [];

/** An overlay over a base that is full of one byte. */
const sceneOf = async (t: TestContext, format: Format): Promise<Scene> => {
  const directory = await scratchDirectory(t);
  const base = join(directory, 'base.raw');
  await writeFile(base, Buffer.alloc(BYTES, BASE_FILL));
  const path = join(directory, `disk.${format}`);
  if (format === 'qcow2') {
    const options = ['-o', `cluster_size=${CLUSTER}`, '-b', base, '-F', 'raw'];
    await qemuImg(['create', '-q', '-f', 'qcow2', ...options, path]);
  } else {
    const image = join(directory, 'image.raw');
    await writeFile(image, Buffer.alloc(0));
    await truncate(image, BYTES);
    await writeAddCow(path, {
      clusterBytes: CLUSTER,
      backing: { name: base, format: 'raw' },
      image: { name: image, format: 'raw' },
      isAllAllocated: false,
      bits: Array.from({ length: BYTES / CLUSTER }, () => false),
    });
  }
  const never = new Promise<void>(() => undefined);
  let isKilled = false;
  const scene = { isFull: false, onFlush: async (): Promise<void> => undefined };
  const file = delayedFile(null, {
    before: async (operation) => {
      if (operation === 'flush') await scene.onFlush();
      if (isKilled) await never;
    },
    atOnce: () => !isKilled,
  });
  const journalDirectory = join(directory, 'journals');
  const journal = (made: RestartJournal): RestartJournal => fullJournal(made, () => scene.isFull);
  const graph = await testGraph({ directory, file, journalDirectory, journal });
  const node = await graph.open({ path, format, readOnly: false });
  const kill: Scene['kill'] = async (judge) => {
    isKilled = true;
    killed.push(node);
    const lines: string[] = [];
    const log = createLog({ level: 'info', journald: false, write: (line) => lines.push(line) });
    const later = await testGraph({ directory, journalDirectory, log });
    const next = await later.open({ path, format, readOnly: false });
    assert.ok(!lines.some((line) => /another program/.test(line)), lines.join('\n'));
    try {
      await judge(next);
    } finally {
      await later.close(next);
    }
    // What was begun and not answered may have left its clusters.
    if (format === 'qcow2') await qemuImg(['check', '-q', '-r', 'leaks', path]);
  };
  return Object.assign(scene, { node, kill });
};

/** Flushes wait until `go`. */
const heldFlushes = (scene: Scene): { go: () => void; isHeld: () => boolean } => {
  let go = (): void => undefined;
  let isHeld = false;
  const going = new Promise<void>((resolve) => {
    go = resolve;
  });
  scene.onFlush = async () => {
    isHeld = true;
    await going;
  };
  return { go, isHeld: () => isHeld };
};

const write = (node: Node, at: number, fill: number): Promise<void> =>
  node.write(guestOffset(at), Buffer.alloc(SLOT, fill));

const byteAt = async (node: Node, at: number): Promise<number> => {
  const found = Buffer.alloc(SLOT);
  await node.read(guestOffset(at), found);
  assert.ok(found.equals(Buffer.alloc(SLOT, found[0])), 'a slot is written as a whole');
  return found[0] ?? 0;
};

const DEPENDENT = [
  {
    what: 'a write in place',
    before: (node: Node) => write(node, 0, 1),
    change: (node: Node) => write(node, SLOT, 2),
    at: SLOT,
    expected: 2,
  },
  {
    what: 'zeros where there are some already',
    before: (node: Node) => node.writeZeroes(guestOffset(0), CLUSTER, { unmap: true }),
    change: (node: Node) => node.writeZeroes(guestOffset(SLOT), SLOT, { unmap: true }),
    at: SLOT,
    expected: 0,
  },
];

for (const format of FORMATS) {
  for (const { what, before, change, at, expected } of DEPENDENT) {
    test(`${format}: ${what}, where the journal has not taken what made the cluster, is answered after a checkpoint`, async (t) => {
      const scene = await sceneOf(t, format);
      // The header is prepared, and the table of the first clusters is there.
      await write(scene.node, 8 * CLUSTER, 9);
      await scene.node.flush();
      scene.isFull = true;
      const { go, isHeld } = heldFlushes(scene);
      const first = before(scene.node);
      while (!isHeld()) await sleep(1);
      let isAnswered = false;
      const second = change(scene.node).then(() => {
        isAnswered = true;
      });
      const m = await scene.node.mapping(guestOffset(0), CLUSTER);
      assert.ok(m.kind !== 'data' || !m.inPlace, 'nobody writes there beside the driver');
      await sleep(50);
      assert.equal(isAnswered, false);
      go();
      await Promise.all([first, second]);
      await scene.kill(async (next) => assert.equal(await byteAt(next, at), expected));
    });
  }

  test(`${format}: what comes after a change that the journal has not taken is not answered if it cannot be taken up`, async (t) => {
    const scene = await sceneOf(t, format);
    scene.isFull = true;
    const { isHeld } = heldFlushes(scene);
    const first = write(scene.node, 0, 1);
    while (!isHeld()) await sleep(1);
    scene.isFull = false;
    const answered: number[] = [];
    const others = [2, 3, 4].map(async (n) => {
      await write(scene.node, n * CLUSTER, n);
      answered.push(n);
    });
    await Promise.race([first, ...others, sleep(50)]);
    await scene.kill(async (next) => {
      for (const n of answered) assert.equal(await byteAt(next, n * CLUSTER), n);
    });
  });

  test(`${format}: a write over a cluster of one that has failed for want of journal and checkpoint is not answered before either`, async (t) => {
    const scene = await sceneOf(t, format);
    await write(scene.node, 8 * CLUSTER, 9);
    await scene.node.flush();
    scene.isFull = true;
    scene.onFlush = async () => {
      throw new BlockError({ kind: 'io', message: 'the fault of this test' });
    };
    await assert.rejects(write(scene.node, 0, 1), /the fault of this test/);
    await assert.rejects(write(scene.node, SLOT, 2), /the fault of this test/);
    // A host that was slow is left alone for a while: nothing is done at once then, whatever the journal has.
    for (let tries = 0; tries < 30; tries++) {
      const page = Buffer.alloc(CLUSTER, 2);
      assert.notEqual(scene.node.driver.writeAtOnce?.(guestOffset(0), page), true);
      await sleep(10);
    }
    scene.isFull = false;
    await write(scene.node, 2 * SLOT, 3);
    await scene.kill(async (next) => {
      assert.equal(await byteAt(next, 2 * SLOT), 3);
      assert.equal(await byteAt(next, 8 * CLUSTER), 9);
    });
  });

  test(`${format}: a journal that can be written again is: nobody waits for a checkpoint any more`, async (t) => {
    const scene = await sceneOf(t, format);
    scene.isFull = true;
    await write(scene.node, 0, 1);
    scene.isFull = false;
    await write(scene.node, CLUSTER, 2);
    heldFlushes(scene);
    await write(scene.node, 2 * CLUSTER, 3);
    await scene.kill(async (next) => {
      for (const n of [0, 1, 2]) assert.equal(await byteAt(next, n * CLUSTER), n + 1);
    });
  });
}

/** What a slot may hold: what was answered last, and what has begun since. */
type Slot = Set<number>;

const RUNS = countOf(6);
const REQUESTS = 300;
const AT_ONCE = 8;

for (const format of FORMATS) {
  test(`${format}: answered changes survive kills while the journal is full now and then (seed ${SEED})`, async (t) => {
    for (let run = 0; run < RUNS; run++) {
      const random = seededRandom(SEED + run);
      const scene = await sceneOf(t, format);
      const { node } = scene;
      scene.onFlush = () => sleep(random.below(4));
      const slots: Slot[] = Array.from({ length: BYTES / SLOT }, () => new Set([BASE_FILL]));
      const busy = new Set<number>();
      let left = REQUESTS;
      let isKilled = false;
      /** Of slots that nobody else changes at the moment. */
      const taken = (): readonly number[] => {
        // Few clusters, so that changes meet in them.
        const first = random.below(12 * (CLUSTER / SLOT));
        const length = 1 + random.below(10);
        const range = Array.from({ length }, (_, i) => first + i);
        return range.some((slot) => busy.has(slot)) ? [] : range;
      };
      const request = async (range: readonly number[]): Promise<void> => {
        const fill = random.below(3) === 0 ? 0 : 1 + random.below(100);
        const at = guestOffset((range[0] ?? 0) * SLOT);
        const bytes = range.length * SLOT;
        for (const slot of range) slots[slot]?.add(fill);
        await (fill === 0
          ? node.writeZeroes(at, bytes, { unmap: random.below(2) === 0 })
          : node.write(at, Buffer.alloc(bytes, fill)));
        if (isKilled) return;
        for (const slot of range) slots[slot] = new Set([fill]);
      };
      const guest = async (): Promise<void> => {
        while (left > 0 && !isKilled) {
          if (random.below(20) === 0) scene.isFull = !scene.isFull;
          const range = taken();
          for (const slot of range) busy.add(slot);
          if (range.length === 0) await sleep(0);
          else await request(range);
          for (const slot of range) busy.delete(slot);
          left--;
          if (random.below(4) === 0) await sleep(random.below(2));
        }
      };
      const guests = Promise.all(Array.from({ length: AT_ONCE }, guest));
      const killAt = random.below(REQUESTS);
      while (left > killAt) await Promise.race([sleep(1), guests]);
      isKilled = true;
      await scene.kill(async (next) => {
        for (const [slot, allowed] of slots.entries()) {
          const found = await byteAt(next, slot * SLOT);
          assert.ok(allowed.has(found), `run ${run}, slot ${slot}: ${found}, not ${[...allowed]}`);
        }
      });
    }
  });
}
