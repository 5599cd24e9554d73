/**
 * Crashes while many requests are under way, over a file whose operations are done in an order that the seed decides, with
 * checkpoints of every kind beside them: a power cut at any moment, with any part of what was not synced, leaves a sound image with
 * all synced data; a kill at any moment loses no answered write. In every other run some writes and reads of the host fail; in some the
 * restart journal is full now and then.
 */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { present } from '../../src/base/assert.ts';
import { BlockError } from '../../src/base/block-error.ts';
import { type Random, seededRandom } from '../../src/base/random.ts';
import { guestOffset } from '../../src/base/units.ts';
import { Lane, type LaneWork } from '../support/crash-lanes.ts';
import { fullJournal } from '../support/full-journal.ts';
import { GuestHistory } from '../support/guest-history.ts';
import { imageAfterCut } from '../support/power-cut.ts';
import {
  type Change,
  FileLog,
  type LoggedChange,
  NEVER,
  recordingFile,
} from '../support/recording-file.ts';
import { countOf, SEED } from '../support/run-parameters.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { ShuffledFiles } from '../support/shuffled-files.ts';
import { testGraph } from '../support/test-graph.ts';
import {
  assertShown,
  assertSound,
  CASES,
  type Case,
  filesOf,
  formatOf,
  makeImage,
} from './crowded-images.ts';

const LANES = 12;
const STEPS = 25;
const RUNS = countOf(2);
const CUTS = 5;
/** One of so many events is a kill that is looked at. */
const KILL_ONE_OF = 300;
const FAULTS = 40;
const MESSAGE = 'the fault of this test';

/** What a kill leaves. */
interface Kill {
  readonly events: number;
  readonly files: readonly {
    readonly path: string;
    readonly bytes: Uint8Array;
    /** Of it the host may do any part yet. */
    readonly underWay: readonly Change[];
  }[];
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

interface Run {
  readonly c: Case;
  readonly what: string;
  readonly directory: string;
  readonly journals: string;
  readonly random: Random;
  /** What all logs have in common is the clock; this is of the file that is opened. */
  readonly log: KilledLog;
  readonly logs: readonly { readonly path: string; readonly log: KilledLog }[];
  readonly files: ShuffledFiles;
  readonly kills: Kill[];
  readonly hasFaults: boolean;
  /** Operations of the file that fail yet. */
  faults: number;
}

const begin = async (directory: string, c: Case, seed: number): Promise<Run> => {
  const journals = join(directory, 'journals');
  await mkdir(journals, { recursive: true });
  const log = new KilledLog();
  const logs = filesOf(directory, c).map((path, i) => ({
    path,
    log: i === 0 ? log : new KilledLog(log),
  }));
  const random = seededRandom(seed);
  const fault = (_: 'read' | 'write', of: string): void => {
    const isOwn = logs.some(({ path }) => path === of);
    if (run.faults === 0 || !isOwn || random.below(50) > 0) return;
    run.faults--;
    throw new BlockError({ kind: 'no-space', message: MESSAGE });
  };
  const files = new ShuffledFiles(random, { atOnce: seed % 3 !== 0, fault });
  const what = `${c.name}, SEED=${seed}`;
  const rest = { kills: [], faults: 0, hasFaults: seed % 2 === 1 };
  const run: Run = { c, what, directory, journals, random, log, logs, files, ...rest };
  return run;
};

const pathOf = ({ logs: [opened] }: Run): string => present(opened, 'it is opened').path;

/** Now and then. */
const lookForKill = ({ random, log, logs, files, journals, kills }: Run): void => {
  if (random.below(KILL_ONE_OF) > 0) return;
  const isUnderWay = ({ ended }: LoggedChange): boolean => ended === NEVER && random.below(2) === 0;
  const names = readdirSync(journals);
  kills.push({
    // An event of its own: what is answered after it is not answered by then.
    events: log.events++,
    files: logs.map(({ path, log: { changes } }) => ({
      path,
      bytes: files.contentOf(path),
      underWay: changes.filter(isUnderWay).map(({ change }) => change),
    })),
    journal: new Map(names.map((name) => [name, readFileSync(join(journals, name))] as const)),
  });
};

/** In one run of two; else never. */
const nowAndThen = (random: Random): (() => boolean) => {
  const isEver = random.below(2) === 0;
  let is = false;
  return () => {
    if (isEver && random.below(12) === 0) is = !is;
    return is;
  };
};

const work = async (run: Run, content: Uint8Array): Promise<LaneWork> => {
  const { c, directory, journals, random, log, logs, files, what } = run;
  const graph = await testGraph({
    directory,
    file: logs.reduce((below, recorded) => recordingFile(recorded, below), files.descriptor),
    journalDirectory: journals,
    journal: (made) => fullJournal(made, nowAndThen(random)),
    cacheBytes: random.pick([1, 16 << 10, 256 << 10]),
  });
  const node = await graph.open({ path: pathOf(run), format: formatOf(c), readOnly: false });
  for (const recorded of logs) recorded.log.look = () => lookForKill(run);
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
  for (const recorded of logs) recorded.log.look = () => undefined;
  const begun = log.events;
  await graph.close(node);
  lanes.synced.flushes.push({ begun, answered: log.answer() });
  return lanes;
};

const assertContent = async (
  run: Run,
  history: GuestHistory,
  events: number,
  how: { readonly isKilled: boolean; readonly what: string },
): Promise<void> => {
  const { c, directory, journals } = run;
  const { isKilled, what } = how;
  const graph = await testGraph({ directory, ...(isKilled && { journalDirectory: journals }) });
  const node = await graph.open({ path: pathOf(run), format: formatOf(c), readOnly: !isKilled });
  const found = new Uint8Array(node.lengthBytes);
  await node.read(guestOffset(0), found);
  await graph.close(node);
  assert.equal(history.firstWrong(found, events), null, what);
  await assertShown(directory, c, found, what);
};

const putBack = ({ journals }: Run, { files, journal }: Kill): void => {
  for (const { path, bytes, underWay } of files) {
    const log = new FileLog();
    for (const change of underWay) log.changes.push({ change, begun: 0, ended: NEVER });
    writeFileSync(path, imageAfterCut(bytes, log, 1, 'all'));
  }
  for (const name of readdirSync(journals)) rmSync(join(journals, name));
  for (const [name, bytes] of journal) writeFileSync(join(journals, name), bytes);
};

const runOne = async (t: TestContext, c: Case, seed: number): Promise<void> => {
  const directory = await scratchDirectory(t);
  const content = await makeImage(directory, c);
  const run = await begin(directory, c, seed);
  const { random, log, logs, kills } = run;
  const starts = await Promise.all(logs.map(({ path }) => readFile(path)));
  const { synced, answered } = await work(run, content);
  for (const { path } of logs) await run.files.save(path);
  await assertSound(directory, c, `${run.what}: closed`);
  for (let i = 0; i < CUTS; i++) {
    const cut = random.below(log.events + 1);
    const what = `${run.what}: cut after event ${cut} of ${log.events}`;
    for (const [index, recorded] of logs.entries()) {
      const start = new Uint8Array(present(starts[index], 'one for each file'));
      await writeFile(recorded.path, imageAfterCut(start, recorded.log, cut, random));
    }
    await assertSound(directory, c, what);
    await assertContent(run, synced, cut, { isKilled: false, what });
  }
  for (const kill of kills) {
    const what = `${run.what}: killed after event ${kill.events} of ${log.events}`;
    putBack(run, kill);
    // What began at this event has begun.
    await assertContent(run, answered, kill.events + 0.5, { isKilled: true, what });
    await assertSound(directory, c, what);
  }
  const sum = (of: 'changes' | 'flushes'): number =>
    logs.reduce((total, recorded) => total + recorded.log[of].length, 0);
  t.diagnostic(`${sum('changes')} writes, ${sum('flushes')} flushes, ${kills.length} kills`);
};

for (const c of CASES) {
  test(`crashes beside many requests leave what was answered and synced: ${c.name}, SEED=${SEED}`, async (t) => {
    // No checkpoint comes by itself, so that time decides nothing; those of a flush and of full memory do.
    t.mock.timers.enable({ apis: ['setTimeout'] });
    for (let i = 0; i < RUNS; i++) await runOne(t, c, SEED + i);
  });
}
