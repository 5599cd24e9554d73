/**
 * Random requests to a qcow2 image, 32 at a time, over a file whose operations are done in a random order, against the
 * history of every byte. Between rounds the image is resized, gets snapshots and goes back to them, or is closed and opened.
 * A run is decided by its seed alone: SEED and COUNT=1 repeat it; but for packed clusters, which zlib's threads unpack in
 * their own time.
 */
import assert from 'node:assert/strict';
import { readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { type Random, seededRandom } from '../../src/base/random.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { Graph } from '../../src/block/graph.ts';
import { Node } from '../../src/block/node.ts';
import { RangeLocks } from '../../src/block/range-locks.ts';
import { ByteHistory } from '../support/byte-history.ts';
import { qemuImg, qemuIo } from '../support/qemu-img.ts';
import { countOf, SEED } from '../support/run-parameters.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { ShuffledFiles } from '../support/shuffled-files.ts';
import { testGraph } from '../support/test-graph.ts';

interface Variant {
  readonly name: string;
  readonly options: string;
  readonly sizeBytes: number;
  readonly backing: 'none' | 'shorter' | 'longer';
  /** Bytes of a cluster that is packed; 0 for none. */
  readonly packedBytes?: number;
  /** Its clusters lie in a file of their own. */
  readonly dataFile?: boolean;
}

const VARIANTS: readonly Variant[] = [
  { name: '4 KiB clusters', options: 'cluster_size=4k', sizeBytes: 256 << 10, backing: 'shorter' },
  {
    name: '512 byte clusters, refcounts of one bit',
    options: 'cluster_size=512,refcount_bits=1',
    sizeBytes: 96 << 10,
    backing: 'none',
  },
  {
    name: 'version 2',
    options: 'cluster_size=1k,compat=0.10',
    sizeBytes: 64 << 10,
    backing: 'shorter',
  },
  {
    name: 'subclusters over a backing image',
    options: 'extended_l2=on,cluster_size=16k',
    sizeBytes: 256 << 10,
    backing: 'longer',
  },
  {
    name: 'a packed cluster with subclusters',
    options: 'extended_l2=on,cluster_size=16k',
    sizeBytes: 128 << 10,
    backing: 'shorter',
    packedBytes: 16 << 10,
  },
  {
    name: 'subclusters alone',
    options: 'extended_l2=on,cluster_size=32k',
    sizeBytes: 512 << 10,
    backing: 'none',
  },
  {
    name: 'an external data file over a backing image',
    options: 'cluster_size=4k',
    sizeBytes: 256 << 10,
    backing: 'longer',
    dataFile: true,
  },
  {
    name: 'a raw data file',
    options: 'cluster_size=8k,data_file_raw=on',
    sizeBytes: 256 << 10,
    backing: 'none',
    dataFile: true,
  },
];

const dataFileOf = (directory: string): string => join(directory, 'disk.data');

const IN_FLIGHT = 32;
const ROUNDS = 4;
const REQUESTS = 160;
/** Half of the requests go to this much of the disk. */
const HOT_BYTES = 24 << 10;

interface Run {
  readonly random: Random;
  readonly history: ByteHistory;
  readonly what: string;
  readonly kept: Map<string, Uint8Array>;
  node: Node;
}

const makeImage = async (directory: string, v: Variant): Promise<Uint8Array> => {
  const image = join(directory, 'disk.qcow2');
  const content = new Uint8Array(v.sizeBytes);
  const data = v.dataFile === true ? `,data_file=${dataFileOf(directory)}` : '';
  if (v.dataFile === true) await rm(dataFileOf(directory), { force: true });
  const make = ['create', '-q', '-f', 'qcow2', '-o', `${v.options}${data}`];
  if (v.backing === 'none') await qemuImg([...make, image, String(v.sizeBytes)]);
  else {
    const base = join(directory, 'base.raw');
    const length = v.backing === 'longer' ? v.sizeBytes + 50_000 : v.sizeBytes - 3 * 512;
    const bytes = Uint8Array.from({ length }, (_, i) => 1 + (i % 250));
    content.set(bytes.subarray(0, v.sizeBytes));
    await writeFile(base, bytes);
    await qemuImg([...make, '-b', base, '-F', 'raw', image, String(v.sizeBytes)]);
  }
  const packed = v.packedBytes ?? 0;
  if (packed > 0) {
    await qemuIo(image, [`write -c -P 7 ${packed} ${packed}`], ['-f', 'qcow2']);
    content.fill(7, packed, 2 * packed);
  }
  return content;
};

const request = async (run: Run): Promise<void> => {
  const { random, history, node } = run;
  const length = 1 + random.below(random.below(3) === 0 ? 20_000 : 1500);
  const room = node.lengthBytes - length;
  const start = random.below(random.below(2) === 0 ? Math.min(room, HOT_BYTES) : room);
  const at = guestOffset(start);
  const kind = random.below(21);
  if (kind < 8) {
    const found = new Uint8Array(length);
    const begun = history.now();
    await node.read(at, found);
    const wrong = history.firstWrong(start, found, begun, history.now());
    assert.equal(wrong, null, `${run.what}: a read of ${length} bytes from ${start}`);
  } else if (kind < 18) {
    const write = history.begin(start, length, kind >= 15);
    if (kind < 15) await node.write(at, history.bytesOf(write));
    else if (kind < 16) await node.discard(at, length);
    else await node.writeZeroes(at, length, { unmap: kind === 16 });
    write.ended = history.now();
  } else if (kind < 20) await node.flush();
  else await node.allocate(at, length);
};

/** Requests until there are enough, then the whole disk; a failure ends all and is thrown when nothing is under way. */
const round = async (run: Run): Promise<void> => {
  const { history, node } = run;
  let left = REQUESTS;
  const lane = async (): Promise<void> => {
    while (left-- > 0) {
      try {
        await request(run);
      } catch (error) {
        left = 0;
        throw error;
      }
    }
  };
  const outcomes = await Promise.allSettled(Array.from({ length: IN_FLIGHT }, lane));
  for (const outcome of outcomes) if (outcome.status === 'rejected') throw outcome.reason;
  const found = new Uint8Array(node.lengthBytes);
  const begun = history.now();
  await node.read(guestOffset(0), found);
  const wrong = history.firstWrong(0, found, begun, history.now());
  assert.equal(wrong, null, `${run.what}: the whole disk after a round`);
  history.settle(found);
};

/** What is done while no request is under way. */
const between = async (run: Run, graph: Graph, image: string): Promise<void> => {
  const { random, history, node, kept } = run;
  const { content } = history;
  const snapshots = node.driver.snapshots;
  const kind = random.below(5);
  if (kind === 0) {
    await graph.close(node);
    run.node = await graph.open({ path: image, format: 'qcow2', readOnly: false });
  } else if (kind <= 2 && (kept.size === 0 || !run.what.includes('version 2'))) {
    const lengthBytes = 512 * (64 + random.below(Math.ceil(content.length / 350)));
    await node.resize(lengthBytes);
    const resized = new Uint8Array(lengthBytes);
    resized.set(content.subarray(0, lengthBytes));
    history.settle(resized);
  } else if (snapshots !== undefined && !/one bit|data file/.test(run.what)) {
    const [id] = kept.keys();
    if (id === undefined) {
      const made = await snapshots.create({ name: 's', dateSeconds: 0, dateNanoseconds: 0 });
      kept.set(made.id, content);
    } else if (random.below(2) === 0) {
      await snapshots.apply(id);
      history.settle(kept.get(id) ?? content);
    } else {
      await snapshots.remove(id);
      kept.delete(id);
    }
  }
};

/** One run; throws what is wrong. */
const runOne = async (directory: string, v: Variant, seed: number): Promise<void> => {
  const content = await makeImage(directory, v);
  const image = join(directory, 'disk.qcow2');
  const random = seededRandom(seed);
  const files = new ShuffledFiles(random);
  const graph = await testGraph({ directory, file: files.descriptor, cacheBytes: 64 << 10 });
  const node = await graph.open({ path: image, format: 'qcow2', readOnly: false });
  const history = new ByteHistory(content);
  const run: Run = { random, history, node, what: `${v.name}, SEED=${seed}`, kept: new Map() };
  try {
    for (let i = 0; i < ROUNDS; i++) {
      if (i > 0) await between(run, graph, image);
      await round(run);
    }
  } finally {
    await graph.close(run.node);
  }
  await files.save(image);
  if (v.dataFile === true) await files.save(dataFileOf(directory));
  await qemuImg(['check', '-q', '-f', 'qcow2', image]);
  await qemuImg(['convert', '-f', 'qcow2', '-O', 'raw', image, `${image}.flat`]);
  const flat = new Uint8Array(await readFile(`${image}.flat`));
  assert.ok(Buffer.from(flat).equals(run.history.content), `${run.what}: what QEMU reads`);
};

/** No checkpoint comes by itself, so that time decides nothing. */
const stopTime = (t: TestContext): void => t.mock.timers.enable({ apis: ['setTimeout'] });

const SEEDS = countOf(2);

for (const v of VARIANTS) {
  test(`requests at once read and leave what some order of them would: ${v.name}, SEED=${SEED}`, async (t) => {
    const directory = await scratchDirectory(t);
    stopTime(t);
    for (let i = 0; i < SEEDS; i++) await runOne(directory, v, SEED + i);
  });
}

const free = { release: () => undefined, [Symbol.dispose]: () => undefined };

/** How many runs may pass before one goes wrong. */
const PLANTED_RUNS = 40;

/**
 * Steps that hold requests apart, each left out: a run must go wrong without it. The seeds are fixed: not every seed brings
 * the two requests together that need the step.
 */
const PLANTED: readonly {
  readonly step: string;
  readonly firstSeed: number;
  readonly plant: (t: TestContext) => void;
}[] = [
  {
    step: 'locks of clusters',
    firstSeed: 1,
    plant: (t) => t.mock.method(RangeLocks.prototype, 'acquire', async () => free),
  },
  {
    step: 'waiting for readers before a cluster is given away',
    firstSeed: 12,
    plant: (t) => t.mock.method(Node.prototype, 'quiesce', async () => undefined),
  },
];

for (const { step, firstSeed, plant } of PLANTED) {
  test(`is noticed when it is missing: ${step}`, async (t) => {
    const directory = await scratchDirectory(t);
    stopTime(t);
    plant(t);
    const [v] = VARIANTS;
    assert.ok(v !== undefined);
    for (let i = 0; i < PLANTED_RUNS; i++) {
      const failure = await runOne(directory, v, firstSeed + i).then(
        () => null,
        (error: Error) => error,
      );
      if (failure === null) continue;
      t.diagnostic(`run ${i + 1}: ${failure.message.split('\n')[0]}`);
      return;
    }
    assert.fail('no run went wrong');
  });
}
