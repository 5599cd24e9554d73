/**
 * A power cut at any moment leaves an image that QEMU opens and finds free of corruption (leaks are allowed), with all
 * synced data there and every byte that was not written since as it was.
 */
import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { type Random, seededRandom } from '../../src/base/random.ts';
import { splitOptions } from '../../src/image/create-options.ts';
import { keyOf, makeLuksImage, qemuKeyOptions } from '../support/encrypted.ts';
import { GuestHistory } from '../support/guest-history.ts';
import { guestStep, packedStep } from '../support/guest-steps.ts';
import { imageAfterCut } from '../support/power-cut.ts';
import { qemuImg, qemuIo } from '../support/qemu-img.ts';
import { FileLog, recordingFile } from '../support/recording-file.ts';
import { countOf, SEED } from '../support/run-parameters.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';

interface Case {
  readonly name: string;
  readonly options: string;
  readonly sizeBytes: number;
  readonly backing: boolean;
  readonly snapshot: boolean;
  readonly encrypted?: boolean;
  /** Some clusters are written packed. */
  readonly packs?: boolean;
}

const CASES: readonly Case[] = [
  {
    name: 'small clusters over a backing image',
    options: 'cluster_size=512',
    sizeBytes: 160 << 10,
    backing: true,
    snapshot: false,
  },
  {
    name: 'refcounts of one bit, tables that grow',
    options: 'cluster_size=512,refcount_bits=1',
    sizeBytes: 320 << 10,
    backing: false,
    snapshot: false,
  },
  {
    name: 'version 2',
    options: 'cluster_size=1k,compat=0.10',
    sizeBytes: 128 << 10,
    backing: true,
    snapshot: false,
  },
  {
    name: 'a snapshot in the image',
    options: 'cluster_size=4k',
    sizeBytes: 256 << 10,
    backing: true,
    snapshot: true,
  },
  {
    name: 'a snapshot that shares L2 tables of several slices',
    options: 'cluster_size=16k',
    sizeBytes: 9 << 20,
    backing: false,
    snapshot: true,
  },
  {
    name: 'encrypted, over a backing image',
    options: 'cluster_size=1k',
    sizeBytes: 160 << 10,
    backing: true,
    snapshot: false,
    encrypted: true,
  },
  {
    name: 'subclusters over a backing image, shared with a snapshot',
    options: 'extended_l2=on,cluster_size=16k',
    sizeBytes: 400 << 10,
    backing: true,
    snapshot: true,
  },
  {
    name: 'packed clusters that share host clusters and are written over',
    options: 'cluster_size=4k',
    sizeBytes: 200 << 10,
    backing: true,
    snapshot: false,
    packs: true,
  },
];

/** Cuts looked at in one workload, and writes in it. */
const CUTS = countOf(16);
const WRITES = 160;

const makeImage = async (
  directory: string,
  c: Case,
): Promise<{ image: string; content: Uint8Array }> => {
  const content = new Uint8Array(c.sizeBytes);
  const image = join(directory, 'disk.qcow2');
  if (c.backing) {
    const backing = join(directory, 'base.raw');
    // Shorter than the overlay, so that its last cluster has an end inside.
    const length = c.sizeBytes - 3 * 512;
    for (let i = 0; i < length; i++) content[i] = 1 + (i % 250);
    await writeFile(backing, content.subarray(0, length));
    await makeOverlay(image, backing, c);
  } else
    await qemuImg(['create', '-q', '-f', 'qcow2', '-o', c.options, image, String(c.sizeBytes)]);
  if (c.snapshot) {
    const last = c.sizeBytes - (24 << 10);
    const writes = ['write -P 0xee 0 64k', 'write -P 0xdd 100k 20k', `write -P 0xcc ${last} 16k`];
    await qemuIo(image, writes, ['-f', 'qcow2']);
    content
      .fill(0xee, 0, 64 << 10)
      .fill(0xdd, 100 << 10, 120 << 10)
      .fill(0xcc, last, last + (16 << 10));
    await qemuImg(['snapshot', '-c', 'before', image]);
  }
  return { image, content };
};

const makeOverlay = async (image: string, backing: string, c: Case): Promise<void> => {
  if (c.encrypted === true) {
    await makeLuksImage(image, {
      bytes: c.sizeBytes,
      options: Object.fromEntries(splitOptions(c.options)),
      backing: { filename: backing, format: 'raw' },
    });
    return;
  }
  const below = ['-b', backing, '-F', 'raw'];
  const options = ['-q', '-f', 'qcow2', '-o', c.options];
  await qemuImg(['create', ...options, ...below, image, String(c.sizeBytes)]);
};

/** How QEMU opens an image of a case. */
const qemuOptions = (path: string, c: Case): readonly string[] =>
  c.encrypted === true ? qemuKeyOptions(path) : ['-f', 'qcow2', path];

const checkCut = async (
  path: string,
  c: Case,
  image: Uint8Array,
  history: GuestHistory,
  cut: number,
  what: string,
): Promise<void> => {
  await writeFile(path, image);
  // 3: leaks alone, which a power cut may leave.
  await qemuImg(['check', '-q', ...qemuOptions(path, c)], [0, 3]).catch((error: Error) => {
    throw new Error(`${what}: ${error.message}`);
  });
  const flat = `${path}.flat`;
  await qemuImg(['convert', '-O', 'raw', ...qemuOptions(path, c), flat]);
  const found = new Uint8Array(await readFile(flat));
  assert.equal(history.firstWrong(found, cut), null, what);
};

/** Runs a workload; returns what checks a cut of it. */
const runWorkload = async (
  directory: string,
  c: Case,
  random: Random,
  dropsFlush?: (index: number) => boolean,
): Promise<{
  log: FileLog;
  check: (cut: number, survivors: 'all' | 'none' | Random) => Promise<void>;
}> => {
  const { image, content } = await makeImage(directory, c);
  const start = new Uint8Array(await readFile(image));
  const log = new FileLog();
  const file = recordingFile({
    path: image,
    log,
    ...(dropsFlush === undefined ? {} : { dropsFlush }),
  });
  const secrets = c.encrypted === true ? [keyOf(directory)] : [];
  const graph = await testGraph({ directory, file, secrets });
  const node = await graph.open({ path: image, format: 'qcow2', readOnly: false });
  const history = new GuestHistory(content);
  for (let i = 0; i < WRITES; i++) {
    const step = c.packs === true && random.below(2) === 0 ? packedStep : guestStep;
    await step(node, random, history, log);
  }
  const begun = log.events;
  await graph.close(node);
  history.flushes.push({ begun, answered: log.events });
  const path = join(directory, 'cut.qcow2');
  const check = (cut: number, survivors: 'all' | 'none' | Random): Promise<void> => {
    const kind = typeof survivors === 'string' ? survivors : 'a part';
    const what = `${c.name}, seed ${SEED}: cut after event ${cut} of ${log.events}, ${kind} of the unsynced writes`;
    return checkCut(path, c, imageAfterCut(start, log, cut, survivors), history, cut, what);
  };
  return { log, check };
};

for (const c of CASES) {
  test(`a power cut leaves a sound image with all synced data: ${c.name}`, async (t) => {
    const directory = await scratchDirectory(t);
    const random = seededRandom(SEED + c.sizeBytes);
    const { log, check } = await runWorkload(directory, c, random);
    await check(log.events + 1, 'none');
    for (let i = 0; i < CUTS; i++) {
      const cut = random.below(log.events + 1);
      await check(cut, random.below(6) === 0 ? (random.below(2) === 0 ? 'all' : 'none') : random);
    }
    t.diagnostic(`${log.changes.length} writes, ${log.flushes.length} flushes, ${CUTS} cuts`);
  });
}

test('the replayer notices flushes that are left out', async (t) => {
  const directory = await scratchDirectory(t);
  const random = seededRandom(SEED);
  const [first] = CASES;
  assert.ok(first !== undefined);
  const { log, check } = await runWorkload(directory, first, random, () => true);
  let noticed = 0;
  for (let i = 0; i < 30 && noticed === 0; i++) {
    await check(random.below(log.events + 1), random).catch(() => noticed++);
  }
  assert.ok(noticed > 0, 'without any flush some cut must lose data or break the image');
});
