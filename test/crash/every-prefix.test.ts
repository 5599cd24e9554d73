/**
 * Every prefix of what short workloads write, each of at least 200 writes and with every operation that changes an image's
 * own tables: QEMU opens it and finds no corruption (leaks are allowed), and it shows all synced data, with nothing else
 * changed: to us each of them, to QEMU some, in a soak each. Snapshots, which need a repair, have a test of
 * their own (snapshot-power-cut.test.ts), and so have long workloads whose writes reach the disk in any order (power-cut.test.ts).
 */
import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { type Random, seededRandom } from '../../src/base/random.ts';
import { guestOffset } from '../../src/base/units.ts';
import { DirtyBitmap } from '../../src/block/dirty-bitmap.ts';
import { TrackedBitmap } from '../../src/block/dirty-tracking.ts';
import type { Graph } from '../../src/block/graph.ts';
import type { Node } from '../../src/block/node.ts';
import { GuestHistory } from '../support/guest-history.ts';
import { guestResize, guestStep, packedStep } from '../support/guest-steps.ts';
import { imageAfterCut, prefixesOf } from '../support/power-cut.ts';
import { qemuImg, qemuIo } from '../support/qemu-img.ts';
import { FileLog, type LoggedFlush, recordingFile } from '../support/recording-file.ts';
import { countOf, SEED } from '../support/run-parameters.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';

interface Case {
  readonly name: string;
  readonly options: string;
  readonly sizeBytes: number;
  /** The largest that it becomes. */
  readonly maxBytes: number;
  readonly backing: boolean;
  readonly bitmap: boolean;
  /** Some clusters are written packed. */
  readonly packs?: boolean;
  /** Written by QEMU before: the refcount table must grow soon. */
  readonly filledBytes: number;
}

const CASES: readonly Case[] = [
  {
    name: 'small clusters over a backing image, sizes that move the L1 table, a dirty bitmap',
    options: 'cluster_size=512',
    sizeBytes: 160 << 10,
    maxBytes: 400 << 10,
    backing: true,
    bitmap: true,
    filledBytes: 0,
  },
  {
    name: 'a refcount table that grows',
    options: 'cluster_size=512,refcount_bits=64',
    sizeBytes: 2200 << 10,
    maxBytes: 2200 << 10,
    backing: false,
    bitmap: false,
    filledBytes: 1700 << 10,
  },
  {
    name: 'version 2, packed clusters that are written over',
    options: 'cluster_size=1k,compat=0.10',
    packs: true,
    sizeBytes: 128 << 10,
    maxBytes: 300 << 10,
    backing: true,
    bitmap: false,
    filledBytes: 0,
  },
  {
    name: 'subclusters',
    options: 'extended_l2=on,cluster_size=16k',
    sizeBytes: 400 << 10,
    maxBytes: 900 << 10,
    backing: true,
    bitmap: false,
    filledBytes: 0,
  },
];

/** Programs of QEMU at once. */
const PARALLEL = 4;
const WRITES = 200;
/** Cuts beside the prefixes. */
const CUTS = countOf(12);
const REFCOUNT_TABLE_FIELD = 48;
const HEADER_BYTES = 104;

const makeImage = async (directory: string, c: Case): Promise<Uint8Array> => {
  const content = new Uint8Array(c.maxBytes);
  const below: string[] = [];
  if (c.backing) {
    // Longer than the image, so that growing must hide its end.
    const length = c.sizeBytes + 5 * 512;
    const base = new Uint8Array(length).map((_, i) => 1 + (i % 250));
    await writeFile(join(directory, 'base.raw'), base);
    content.set(base.subarray(0, c.sizeBytes));
    below.push('-b', join(directory, 'base.raw'), '-F', 'raw');
  }
  const options = ['-q', '-f', 'qcow2', '-o', c.options, ...below];
  const image = join(directory, 'disk.qcow2');
  await qemuImg(['create', ...options, image, String(c.sizeBytes)]);
  if (c.filledBytes > 0) await qemuIo(image, [`write -P 5 0 ${c.filledBytes}`]);
  return content.fill(5, 0, c.filledBytes);
};

interface Work {
  readonly c: Case;
  readonly graph: Graph;
  readonly path: string;
  readonly random: Random;
  readonly history: GuestHistory;
  readonly log: FileLog;
}

/** Opens and closes the image twice: what is saved on close belongs to it. */
const runSessions = async (work: Work): Promise<void> => {
  const { c, graph, path, random, history, log } = work;
  for (let session = 0; session < 2; session++) {
    const node = await graph.open({ path, format: 'qcow2', readOnly: false });
    if (c.bitmap && session === 0) await node.dirtyBitmaps.add(newBitmap(node));
    for (let i = 0; log.changes.length < ((session + 1) * WRITES) / 2; i++) {
      const step = c.packs === true && i % 3 === 0 ? packedStep : guestStep;
      await step(node, random, history, log);
      if (i % 10 === 4) await changeSize(node, work);
      if (i === 20 && session === 0 && c.filledBytes > 0) await bulk(node, work);
    }
    const begun = log.events;
    await graph.close(node);
    history.flushes.push({ begun, answered: log.events });
  }
};

/** All that QEMU left. */
const bulk = async (node: Node, { c, random, history, log }: Work): Promise<void> => {
  const bytes = new Uint8Array(c.sizeBytes - c.filledBytes);
  random.fill(bytes);
  const offset = c.filledBytes;
  const write = { offset, bytes, begun: log.events, answered: Number.POSITIVE_INFINITY };
  history.writes.push(write);
  await node.write(guestOffset(offset), bytes);
  write.answered = log.answer();
};

const changeSize = async (node: Node, { c, random, history, log }: Work): Promise<void> => {
  if (c.maxBytes === c.sizeBytes) return;
  const least = c.sizeBytes / 2;
  const lengthBytes = least + random.below((c.maxBytes - least) / 512) * 512;
  await guestResize(node, lengthBytes, history, log);
};

const newBitmap = (node: Node): TrackedBitmap =>
  new TrackedBitmap({
    name: 'changes',
    content: new DirtyBitmap({ lengthBytes: node.lengthBytes, granularityBytes: 512 }),
    recording: true,
    persistent: true,
  });

/** Looks at it in a file of its own, `slot`. */
const checkPrefix = async (
  directory: string,
  slot: number,
  image: Uint8Array,
  firstWrong: (found: Uint8Array) => string | null,
): Promise<void> => {
  const path = join(directory, `cut-${slot}.qcow2`);
  await writeFile(path, image);
  await qemuImg(['check', '-q', '-f', 'qcow2', path], [0, 3]);
  const graph = await testGraph({ directory });
  const node = await graph.open({ path, format: 'qcow2', readOnly: true });
  const found = new Uint8Array(node.lengthBytes);
  await node.read(guestOffset(0), found);
  await graph.close(node);
  assert.equal(firstWrong(found), null);
  if (slot !== 0 && countOf(1) <= 4) return;
  await qemuImg(['convert', '-f', 'qcow2', '-O', 'raw', path, `${path}.flat`]);
  const theirs = await readFile(`${path}.flat`);
  assert.equal(Buffer.compare(theirs, found), 0, 'QEMU reads the same');
};

/** Those before which the header was written, as tables move. */
const flushesAfterHeader = ({ changes, flushes }: FileLog): readonly LoggedFlush[] =>
  changes.flatMap(({ change, begun }) => {
    if (change.kind !== 'write' || change.offset >= HEADER_BYTES) return [];
    const next = flushes.find((flush) => flush.begun > begun);
    return next === undefined ? [] : [next];
  });

/** The large one, around the move of the refcount table, and one in four beside it; in a soak, all. */
const isLookedAt = (c: Case, log: FileLog, events: number): boolean => {
  if (c.filledBytes === 0 || countOf(1) > 4) return true;
  const index = log.changes.findIndex(({ begun }) => begun + 1 === events);
  const moved = log.changes.findIndex(
    ({ change }) => change.kind === 'write' && change.offset === REFCOUNT_TABLE_FIELD,
  );
  return index % 4 === 0 || Math.abs(index - moved) < 25;
};

for (const c of CASES) {
  test(`every prefix of a workload is a sound image with all synced data: ${c.name}`, async (t) => {
    const directory = await scratchDirectory(t);
    const content = await makeImage(directory, c);
    const path = join(directory, 'disk.qcow2');
    const start = new Uint8Array(await readFile(path));
    const log = new FileLog();
    const graph = await testGraph({ directory, file: recordingFile({ path, log }) });
    const history = new GuestHistory(content, c.sizeBytes);
    const random = seededRandom(SEED + c.sizeBytes);
    await runSessions({ c, graph, path, random, history, log });
    const end = await readFile(path);
    const hasGrown =
      end.readBigUInt64BE(REFCOUNT_TABLE_FIELD) !==
      Buffer.from(start).readBigUInt64BE(REFCOUNT_TABLE_FIELD);
    assert.equal(hasGrown, c.filledBytes > 0, 'the refcount table has moved');
    const prefixes = prefixesOf([{ start, log }]);
    const worker = async (_: unknown, slot: number): Promise<void> => {
      for (const { events, images } of prefixes) {
        if (!isLookedAt(c, log, events)) continue;
        const image = images[0]?.slice() ?? new Uint8Array();
        await checkPrefix(directory, slot, image, (found) =>
          history.firstWrong(found, events),
        ).catch((error: Error) => {
          throw new Error(`seed ${SEED}: cut after event ${events}: ${error.message}`);
        });
      }
    };
    await Promise.all(Array.from({ length: PARALLEL }, worker));
    // And what flushes allow to be written in another order, where most of it is open, and where the header changes.
    const afterHeader = flushesAfterHeader(log);
    for (let i = 0; i < CUTS; i++) {
      const events = random.pick(i % 3 === 0 ? log.flushes : afterHeader).begun + 1;
      const image = imageAfterCut(start, log, events, random);
      await checkPrefix(directory, 0, image, (found) => history.firstWrong(found, events)).catch(
        (error: Error) => {
          throw new Error(`seed ${SEED}: cut after event ${events}, a part: ${error.message}`);
        },
      );
    }
    t.diagnostic(`${log.changes.length} writes, ${log.flushes.length} flushes`);
  });
}
