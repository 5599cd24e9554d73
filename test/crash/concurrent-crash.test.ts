/**
 * Crashes while many requests are under way, over a file whose operations are done in an order that the seed decides, with
 * checkpoints of every kind beside them: a power cut at any moment, with any part of what was not synced, leaves a sound image with
 * all synced data; a kill at any moment loses no answered write. In every other run some writes and reads of the host fail.
 */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { BlockError } from '../../src/base/block-error.ts';
import { type Random, seededRandom } from '../../src/base/random.ts';
import { guestOffset } from '../../src/base/units.ts';
import { Lane, type LaneWork } from '../support/crash-lanes.ts';
import { GuestHistory } from '../support/guest-history.ts';
import { imageAfterCut } from '../support/power-cut.ts';
import { qemuImg, qemuIo } from '../support/qemu-img.ts';
import { type Change, FileLog, NEVER, recordingFile } from '../support/recording-file.ts';
import { countOf, SEED } from '../support/run-parameters.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { ShuffledFiles } from '../support/shuffled-files.ts';
import { testGraph } from '../support/test-graph.ts';

interface Case {
  readonly name: string;
  readonly options: string;
  readonly clusterBytes: number;
  readonly sizeBytes: number;
  /** One of QEMU's is in the image. */
  readonly snapshot?: boolean;
  readonly packs?: boolean;
  /** Filled by QEMU before, so that the refcount table has to grow. */
  readonly filledBytes?: number;
}

const CASES: readonly Case[] = [
  {
    name: 'small clusters',
    options: 'cluster_size=512',
    clusterBytes: 512,
    sizeBytes: 160 << 10,
  },
  {
    name: 'a refcount table that grows',
    options: 'cluster_size=512,refcount_bits=64',
    clusterBytes: 512,
    sizeBytes: 2600 << 10,
    filledBytes: 1985 << 10,
  },
  {
    name: 'a snapshot in the image',
    options: 'cluster_size=4k',
    clusterBytes: 4096,
    sizeBytes: 512 << 10,
    snapshot: true,
  },
  {
    name: 'packed clusters',
    options: 'cluster_size=4k',
    clusterBytes: 4096,
    sizeBytes: 400 << 10,
    snapshot: true,
    packs: true,
  },
  {
    name: 'version 2',
    options: 'cluster_size=1k,compat=0.10',
    clusterBytes: 1024,
    sizeBytes: 128 << 10,
  },
  {
    name: 'subclusters',
    options: 'extended_l2=on,cluster_size=16k',
    clusterBytes: 16_384,
    sizeBytes: 800 << 10,
    snapshot: true,
  },
];

const LANES = 12;
const STEPS = 25;
const RUNS = countOf(2);
const CUTS = 5;
/** One of so many events is a kill that is looked at. */
const KILL_ONE_OF = 300;
const FAULTS = 40;
const MESSAGE = 'the fault of this test';

/** What a kill leaves. Of what is under way the host may do any part yet. */
interface Kill {
  readonly events: number;
  readonly image: Uint8Array;
  readonly underWay: readonly Change[];
  readonly journal: ReadonlyMap<string, Buffer>;
}

class KilledLog extends FileLog {
  /** Called at each event. */
  look: () => void = () => undefined;

  override async change<T>(change: Change, run: () => Promise<T>): Promise<T> {
    this.look();
    try {
      return await super.change(change, run);
    } catch (error) {
      // Nothing of it was done.
      const index = this.changes.findIndex((logged) => logged.change === change);
      this.changes.splice(index, 1);
      throw error;
    } finally {
      this.look();
    }
  }

  override changeAtOnce(change: Change, run: () => boolean): boolean {
    this.look();
    const isDone = super.changeAtOnce(change, run);
    this.look();
    return isDone;
  }

  override async flush(run: () => Promise<void>): Promise<void> {
    this.look();
    await super.flush(run);
    this.look();
  }
}

/** Over a backing file that is shorter than the image. */
const makeImage = async (directory: string, c: Case): Promise<Uint8Array> => {
  const image = join(directory, 'disk.qcow2');
  const content = new Uint8Array(c.sizeBytes);
  const base = new Uint8Array(c.sizeBytes - 1000).map((_, i) => 1 + (i % 250));
  await writeFile(join(directory, 'base.raw'), base);
  content.set(base);
  const below = ['-b', join(directory, 'base.raw'), '-F', 'raw'];
  const options = ['-q', '-f', 'qcow2', '-o', c.options, ...below];
  await qemuImg(['create', ...options, image, String(c.sizeBytes)]);
  const filledBytes = c.filledBytes ?? (c.snapshot === true ? 64 << 10 : 0);
  if (filledBytes > 0) await qemuIo(image, [`write -P 0xee 0 ${filledBytes}`], ['-f', 'qcow2']);
  if (c.snapshot === true) await qemuImg(['snapshot', '-c', 'before', image]);
  return content.fill(0xee, 0, filledBytes);
};

interface Run {
  readonly what: string;
  readonly directory: string;
  readonly path: string;
  readonly journals: string;
  readonly random: Random;
  readonly log: KilledLog;
  readonly files: ShuffledFiles;
  readonly kills: Kill[];
  readonly hasFaults: boolean;
  /** Operations of the file that fail yet. */
  faults: number;
}

const begin = async (directory: string, c: Case, seed: number): Promise<Run> => {
  const [path, journals] = [join(directory, 'disk.qcow2'), join(directory, 'journals')];
  await mkdir(journals, { recursive: true });
  const random = seededRandom(seed);
  const fault = (_: 'read' | 'write', of: string): void => {
    if (run.faults === 0 || of !== path || random.below(50) > 0) return;
    run.faults--;
    throw new BlockError({ kind: 'no-space', message: MESSAGE });
  };
  const files = new ShuffledFiles(random, { atOnce: seed % 3 !== 0, fault });
  const what = `${c.name}, SEED=${seed}`;
  const rest = { log: new KilledLog(), kills: [], faults: 0, hasFaults: seed % 2 === 1 };
  const run: Run = { what, directory, path, journals, random, files, ...rest };
  return run;
};

/** Now and then. */
const lookForKill = ({ random, log, files, journals, kills, path }: Run): void => {
  if (random.below(KILL_ONE_OF) > 0) return;
  const open = log.changes.filter((logged) => logged.ended === NEVER && random.below(2) === 0);
  const names = readdirSync(journals);
  kills.push({
    // An event of its own: what is answered after it is not answered by then.
    events: log.events++,
    image: files.contentOf(path),
    underWay: open.map(({ change }) => change),
    journal: new Map(names.map((name) => [name, readFileSync(join(journals, name))] as const)),
  });
};

const work = async (run: Run, c: Case, content: Uint8Array): Promise<LaneWork> => {
  const { directory, path, journals, random, log, files, what } = run;
  const graph = await testGraph({
    directory,
    file: recordingFile({ path, log }, files.descriptor),
    journalDirectory: journals,
    cacheBytes: random.pick([1, 16 << 10, 256 << 10]),
  });
  const node = await graph.open({ path, format: 'qcow2', readOnly: false });
  log.look = () => lookForKill(run);
  if (run.hasFaults) run.faults = FAULTS;
  const lanes: LaneWork = {
    ...{ node, random, log, clusterBytes: c.clusterBytes, lanes: LANES, packs: c.packs === true },
    synced: new GuestHistory(content),
    answered: new GuestHistory(content),
    isExpected: (error) => String(error).includes(MESSAGE),
  };
  const outcomes = await Promise.allSettled(
    Array.from({ length: LANES }, (_, index) => new Lane(lanes, index, content).run(STEPS)),
  );
  for (const [index, outcome] of outcomes.entries())
    if (outcome.status === 'rejected')
      throw new Error(`${what}: lane ${index}`, { cause: outcome.reason });
  run.faults = 0;
  log.look = () => undefined;
  const begun = log.events;
  await graph.close(node);
  lanes.synced.flushes.push({ begun, answered: log.answer() });
  return lanes;
};

/** Leaks are allowed. */
const assertSound = async (path: string, what: string): Promise<void> => {
  await qemuImg(['check', '-q', '-f', 'qcow2', path], [0, 3]).catch((error: Error) => {
    throw new Error(`${what}: ${error.message}`);
  });
};

const assertContent = async (
  run: Run,
  history: GuestHistory,
  events: number,
  how: { readonly isKilled: boolean; readonly what: string },
): Promise<void> => {
  const { directory, path, journals } = run;
  const { isKilled, what } = how;
  const graph = await testGraph({ directory, ...(isKilled && { journalDirectory: journals }) });
  const node = await graph.open({ path, format: 'qcow2', readOnly: !isKilled });
  const found = new Uint8Array(node.lengthBytes);
  await node.read(guestOffset(0), found);
  await graph.close(node);
  assert.equal(history.firstWrong(found, events), null, what);
};

const putBack = ({ path, journals }: Run, { image, underWay, journal }: Kill): void => {
  const log = new FileLog();
  for (const change of underWay) log.changes.push({ change, begun: 0, ended: NEVER });
  writeFileSync(path, imageAfterCut(image, log, 1, 'all'));
  for (const name of readdirSync(journals)) rmSync(join(journals, name));
  for (const [name, bytes] of journal) writeFileSync(join(journals, name), bytes);
};

const runOne = async (t: TestContext, c: Case, seed: number): Promise<void> => {
  const directory = await scratchDirectory(t);
  const content = await makeImage(directory, c);
  const run = await begin(directory, c, seed);
  const { path, random, log, kills } = run;
  const start = new Uint8Array(await readFile(path));
  const { synced, answered } = await work(run, c, content);
  await run.files.save(path);
  await assertSound(path, `${run.what}: closed`);
  for (let i = 0; i < CUTS; i++) {
    const cut = random.below(log.events + 1);
    const what = `${run.what}: cut after event ${cut} of ${log.events}`;
    await writeFile(path, imageAfterCut(start, log, cut, random));
    await assertSound(path, what);
    await assertContent(run, synced, cut, { isKilled: false, what });
  }
  for (const kill of kills) {
    const what = `${run.what}: killed after event ${kill.events} of ${log.events}`;
    putBack(run, kill);
    // What began at this event has begun.
    await assertContent(run, answered, kill.events + 0.5, { isKilled: true, what });
    await assertSound(path, what);
  }
  const { changes, flushes } = log;
  t.diagnostic(`${changes.length} writes, ${flushes.length} flushes, ${kills.length} kills`);
};

for (const c of CASES) {
  test(`crashes beside many requests leave what was answered and synced: ${c.name}, SEED=${SEED}`, async (t) => {
    // No checkpoint comes by itself, so that time decides nothing; those of a flush and of full memory do.
    t.mock.timers.enable({ apis: ['setTimeout'] });
    for (let i = 0; i < RUNS; i++) await runOne(t, c, SEED + i);
  });
}
