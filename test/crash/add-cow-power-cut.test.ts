/**
 * A power cut at any moment leaves an add-cow image and its image file in a state that a reader of the format's own rules
 * accepts, and our driver too: all synced data is there, every other cluster is old or new, and none is half of both.
 */
import assert from 'node:assert/strict';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { type Random, seededRandom } from '../../src/base/random.ts';
import { guestOffset } from '../../src/base/units.ts';
import { decodeAddCow, guestOf, writeAddCow } from '../support/add-cow-file.ts';
import { GuestHistory } from '../support/guest-history.ts';
import { guestStep } from '../support/guest-steps.ts';
import { imageAfterCut, prefixesOf, type Survivors } from '../support/power-cut.ts';
import { FileLog, recordingFile } from '../support/recording-file.ts';
import { countOf, SEED } from '../support/run-parameters.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';

interface Case {
  readonly name: string;
  readonly clusterBytes: number;
  readonly sizeBytes: number;
  /** Nothing may be left for the guest to write at the end. */
  readonly completes: boolean;
}

const CASES: readonly Case[] = [
  { name: 'small clusters', clusterBytes: 512, sizeBytes: (160 << 10) + 100, completes: false },
  { name: 'clusters of 4 KiB', clusterBytes: 4096, sizeBytes: 400 << 10, completes: false },
  {
    name: 'an image that becomes complete',
    clusterBytes: 16_384,
    sizeBytes: 100_000,
    completes: true,
  },
];

const CUTS = countOf(16);
/** Of both files together. */
const WRITES = 200;

interface Workload {
  readonly events: number;
  readonly isAllAllocated: boolean;
  check(cut: number, survivors: Survivors): Promise<void>;
  /** What is left when all was written in order, after each write. */
  checkPrefixes(): Promise<void>;
}

const runWorkload = async (
  directory: string,
  c: Case,
  random: Random,
  dropsImageFlush: boolean,
): Promise<Workload> => {
  const path = (name: string): string => join(directory, name);
  const { clusterBytes, sizeBytes } = c;
  // Shorter than the image, so that a cluster has its end inside; and what the image file holds under clear bits is hidden.
  const base = new Uint8Array(sizeBytes);
  for (let i = 0; i < sizeBytes - 700; i++) base[i] = 1 + (i % 250);
  await writeFile(path('base.raw'), base.subarray(0, sizeBytes - 700));
  await writeFile(path('disk.raw'), new Uint8Array(sizeBytes).fill(0xbb));
  await writeAddCow(path('disk.add-cow'), {
    clusterBytes,
    backing: { name: 'base.raw', format: 'raw' },
    image: { name: 'disk.raw', format: 'raw' },
    isAllAllocated: false,
    bits: new Array<boolean>(Math.ceil(sizeBytes / clusterBytes)).fill(false),
  });
  const names = ['disk.add-cow', 'disk.raw'] as const;
  const start = await Promise.all(names.map((name) => readFile(path(name))));
  const clock = { events: 0 };
  const [bits, data] = [new FileLog(clock), new FileLog(clock)];
  const file = recordingFile(
    { path: path('disk.add-cow'), log: bits },
    recordingFile({
      path: path('disk.raw'),
      log: data,
      ...(dropsImageFlush ? { dropsFlush: () => true } : {}),
    }),
  );
  const graph = await testGraph({ directory, file });
  const node = await graph.open({ path: path('disk.add-cow'), format: null, readOnly: false });
  const history = new GuestHistory(base);
  while (bits.changes.length + data.changes.length < WRITES)
    await guestStep(node, random, history, bits);
  const begun = bits.events;
  await graph.close(node);
  history.flushes.push({ begun, answered: bits.events });
  const cutDirectory = path('cut');
  await mkdir(cutDirectory, { recursive: true });
  await writeFile(join(cutDirectory, 'base.raw'), base.subarray(0, sizeBytes - 700));

  const files = [bits, data].map((log, i) => ({ start: start[i] ?? new Uint8Array(), log }));
  const check = async (cut: number, survivors: Survivors): Promise<void> => {
    const images = files.map((f) => imageAfterCut(f.start, f.log, cut, survivors));
    await look(images, cut, typeof survivors === 'string' ? survivors : 'a part');
  };
  const checkPrefixes = async (): Promise<void> => {
    for (const { images, events } of prefixesOf(files)) await look(images, events, 'all');
  };
  const look = async (
    [bitBytes = new Uint8Array(), dataBytes = new Uint8Array()]: readonly Uint8Array[],
    cut: number,
    kind: string,
  ): Promise<void> => {
    const what = `${c.name}, seed ${SEED}: cut after event ${cut} of ${bits.events}, ${kind} of the unsynced writes`;
    const decoded = decodeAddCow(Buffer.from(bitBytes), sizeBytes);
    const image = decoded.isAllAllocated ? dataBytes : guestOf(decoded, dataBytes, base);
    assert.equal(history.firstWrong(image, cut), null, what);
    await writeFile(join(cutDirectory, 'disk.add-cow'), bitBytes);
    await writeFile(join(cutDirectory, 'disk.raw'), dataBytes);
    const reader = await testGraph({ directory: cutDirectory });
    const root = await reader.open({
      path: join(cutDirectory, 'disk.add-cow'),
      format: null,
      readOnly: true,
    });
    const found = new Uint8Array(sizeBytes);
    await root.read(guestOffset(0), found);
    await reader.close(root);
    assert.ok(Buffer.compare(found, image) === 0, `${what}: our driver reads the same`);
  };
  const { isAllAllocated } = decodeAddCow(await readFile(path('disk.add-cow')), sizeBytes);
  return { events: bits.events, isAllAllocated, check, checkPrefixes };
};

const survivorsOf = (random: Random): Survivors =>
  random.below(6) === 0 ? (random.below(2) === 0 ? 'all' : 'none') : random;

for (const c of CASES) {
  test(`a power cut leaves each cluster old or new, and all synced data: ${c.name}`, async (t) => {
    const directory = await scratchDirectory(t);
    const random = seededRandom(SEED + c.sizeBytes);
    const work = await runWorkload(directory, c, random, false);
    const { events, isAllAllocated, check } = work;
    if (c.completes) assert.ok(isAllAllocated, 'the workload wrote every cluster');
    await check(events + 1, 'none');
    await work.checkPrefixes();
    for (let i = 0; i < CUTS; i++) await check(random.below(events + 1), survivorsOf(random));
  });
}

test('the replayer notices when the image file is not flushed before the bits', async (t) => {
  const directory = await scratchDirectory(t);
  const random = seededRandom(SEED);
  const [, c] = CASES;
  assert.ok(c !== undefined);
  const { events, check } = await runWorkload(directory, c, random, true);
  let noticed = 0;
  for (let i = 0; i < 30 && noticed === 0; i++)
    await check(random.below(events + 1), random).catch(() => noticed++);
  assert.ok(noticed > 0, 'some cut must lose data');
});
