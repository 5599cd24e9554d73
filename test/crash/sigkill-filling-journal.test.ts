/**
 * SIGKILL at every step of short workloads whose restart journal is full from some record on, for each such record: what it has taken
 * is taken up whatever of the later changes, which it was not told, a checkpoint has brought to the file by then.
 */
import assert from 'node:assert/strict';
import { readdirSync, rmSync, writeFileSync } from 'node:fs';
import { mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { createLog } from '../../src/base/log.ts';
import { seededRandom } from '../../src/base/random.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { Node } from '../../src/block/node.ts';
import { fullJournal } from '../support/full-journal.ts';
import { GuestHistory } from '../support/guest-history.ts';
import { guestFlush, guestStep, packedStep } from '../support/guest-steps.ts';
import { filesAfterKills, KillSteps, SteppedLog } from '../support/kill-steps.ts';
import { assertClean, qemuImg, qemuIo } from '../support/qemu-img.ts';
import { type Change, type FileLog, recordingFile } from '../support/recording-file.ts';
import { countOf, SEED } from '../support/run-parameters.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';

const CLUSTER = 512;
const TENURE = 'one';

/** Changes one after the other: each moment between two is one at which the process may be killed. */
class OrderedLog extends SteppedLog {
  #last: Promise<unknown> = Promise.resolve();
  #waiting = 0;

  override change<T>(change: Change, run: () => Promise<T>): Promise<T> {
    this.#waiting++;
    const done = this.#last.then(() => super.change(change, run)).finally(() => this.#waiting--);
    this.#last = done.catch(() => undefined);
    return done;
  }

  override changeAtOnce(change: Change, run: () => boolean): boolean {
    return this.#waiting === 0 && super.changeAtOnce(change, run);
  }
}

interface Guest {
  readonly node: Node;
  readonly history: GuestHistory;
  readonly log: FileLog;
}

const writeCluster = async ({ node, history, log }: Guest, cluster: number, fill: number) => {
  const offset = cluster * CLUSTER;
  const bytes = new Uint8Array(CLUSTER).fill(fill);
  const write = { offset, bytes, begun: log.events, answered: Number.POSITIVE_INFINITY };
  history.writes.push(write);
  if (fill === 0) await node.discard(guestOffset(offset), CLUSTER);
  else await node.write(guestOffset(offset), bytes);
  write.answered = log.answer();
};

const flush = async ({ node, history, log }: Guest): Promise<void> => {
  await guestFlush(node, history, log);
  // What was unmapped is given back by itself.
  await sleep(5);
};

interface Case {
  readonly name: string;
  readonly options: string;
  readonly sizeBytes: number;
  readonly snapshot?: boolean;
  /** Of the records, so many apart are taken; all of them in the soak. */
  readonly stride?: number;
  readonly run: (guest: Guest) => Promise<void>;
}

const randomly =
  (seed: number, steps: number, packs: boolean) =>
  async (guest: Guest): Promise<void> => {
    const random = seededRandom(SEED + seed);
    const { node, history, log } = guest;
    for (let i = 0; i < steps; i++) {
      const step = packs && i % 2 === 0 ? packedStep : guestStep;
      await step(node, random, history, log);
      if (i % 4 === 3) await flush(guest);
    }
  };

const CASES: readonly Case[] = [
  {
    name: 'a cluster that was given back is taken again',
    options: `cluster_size=${CLUSTER}`,
    sizeBytes: 192 * CLUSTER,
    run: async (guest) => {
      await writeCluster(guest, 0, 1);
      await writeCluster(guest, 5, 5);
      await flush(guest);
      await writeCluster(guest, 0, 0);
      await flush(guest);
      await writeCluster(guest, 20, 20);
      await writeCluster(guest, 21, 21);
    },
  },
  {
    name: 'an entry is changed again',
    options: `cluster_size=${CLUSTER}`,
    sizeBytes: 192 * CLUSTER,
    run: async (guest) => {
      await writeCluster(guest, 0, 1);
      await writeCluster(guest, 70, 60);
      await flush(guest);
      await writeCluster(guest, 0, 0);
      await writeCluster(guest, 71, 61);
      await writeCluster(guest, 0, 2);
      await writeCluster(guest, 140, 14);
    },
  },
  {
    name: 'at random, and more refcount blocks',
    stride: 4,
    options: 'cluster_size=512,refcount_bits=64',
    sizeBytes: 96 << 10,
    run: randomly(1, 14, false),
  },
  {
    name: 'at random, packed clusters and what a snapshot shares',
    stride: 4,
    options: 'cluster_size=4k',
    sizeBytes: 160 << 10,
    snapshot: true,
    run: randomly(2, 10, true),
  },
  {
    name: 'at random, subclusters',
    stride: 4,
    options: 'cluster_size=16k,extended_l2=on,refcount_bits=1',
    sizeBytes: 256 << 10,
    run: randomly(3, 20, false),
  },
];

/** Takes records until there is no room, and again after so many that it has refused. */
class Room {
  taken = 0;
  refused = 0;
  readonly #records: number;
  readonly #refusals: number;
  readonly #onRefusal: () => void;

  constructor(records: number, refusals: number, onRefusal: () => void) {
    this.#records = records;
    this.#refusals = refusals;
    this.#onRefusal = onRefusal;
  }

  isFull(): boolean {
    const isFull = this.taken >= this.#records && this.refused < this.#refusals;
    if (!isFull) this.taken++;
    else if (this.refused++ === 0) this.#onRefusal();
    return isFull;
  }
}

const makeImage = async (directory: string, c: Case): Promise<readonly [string, Uint8Array]> => {
  const path = join(directory, 'disk.qcow2');
  await qemuImg(['create', '-q', '-f', 'qcow2', '-o', c.options, path, `${c.sizeBytes}`]);
  const content = new Uint8Array(c.sizeBytes);
  if (c.snapshot !== true) return [path, content];
  await qemuIo(path, ['write -P 0xee 0 64k'], ['-f', 'qcow2']);
  await qemuImg(['snapshot', '-c', 'before', path]);
  return [path, content.fill(0xee, 0, 64 << 10)];
};

interface Image {
  readonly directory: string;
  readonly path: string;
  readonly journals: string;
  readonly start: Uint8Array;
  readonly content: Uint8Array;
}

/** The workload with so much room, then a kill at each step since the first refusal; how many records there were. */
const killedEverywhere = async (c: Case, image: Image, records: number, refusals: number) => {
  const { directory, path, journals, start, content } = image;
  writeFileSync(path, start);
  for (const name of readdirSync(journals)) rmSync(join(journals, name));
  const steps = new KillSteps(journals);
  const log = new OrderedLog(steps);
  let fullSince = Number.POSITIVE_INFINITY;
  const room = new Room(records, refusals, () => {
    fullSince = log.events;
  });
  const graph = await testGraph({
    directory,
    file: recordingFile({ path, log }),
    journalDirectory: journals,
    tenure: TENURE,
    journal: (made) => fullJournal(made, () => room.isFull()),
  });
  const node = await graph.open({ path, format: 'qcow2', readOnly: false });
  const history = new GuestHistory(content);
  await c.run({ node, history, log });
  await graph.close(node);
  await assertClean(path);
  // What was answered is there, synced or not.
  for (const { answered } of [...history.writes])
    history.flushes.push({ begun: answered, answered });
  for (const { events } of filesAfterKills(steps, [path], [{ start, log }])) {
    if (events < fullSince) continue;
    const what = `seed ${SEED}: full from record ${records} on, ${refusals} times, killed after event ${events} of ${log.events}`;
    const lines: string[] = [];
    const told = createLog({ level: 'error', journald: false, write: (line) => lines.push(line) });
    const next = await testGraph({
      directory,
      journalDirectory: journals,
      tenure: TENURE,
      log: told,
    });
    const opened = await next.open({ path, format: 'qcow2', readOnly: false });
    const found = new Uint8Array(opened.lengthBytes);
    await opened.read(guestOffset(0), found);
    await next.close(opened);
    assert.deepEqual(lines, [], what);
    // What began at this event has begun.
    assert.equal(history.firstWrong(found, events + 0.5), null, what);
    await qemuImg(['check', '-q', '-f', 'qcow2', path], [0, 3]).catch((error: Error) => {
      throw new Error(`${what}: ${error.message}`);
    });
  }
  return room.taken;
};

const NEVER_AGAIN = Number.POSITIVE_INFINITY;

for (const c of CASES) {
  test(`a kill at any step, with a journal that is full from any record on: ${c.name}`, async (t: TestContext) => {
    const directory = await scratchDirectory(t);
    const journals = join(directory, 'journals');
    await mkdir(journals);
    const [path, content] = await makeImage(directory, c);
    const start = new Uint8Array(await readFile(path));
    const image = { directory, path, journals, start, content };
    const all = await killedEverywhere(c, image, NEVER_AGAIN, 0);
    assert.ok(all > 5, 'there are records that it may refuse');
    const stride = countOf(1) === 1 ? (c.stride ?? 1) : 1;
    for (let records = SEED % stride; records < all; records += stride)
      await killedEverywhere(c, image, records, records % 3 === 1 ? 2 : NEVER_AGAIN);
  });
}
