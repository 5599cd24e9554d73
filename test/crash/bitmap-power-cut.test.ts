/**
 * A power cut at any moment leaves each persistent dirty bitmap consistent and right, or marked in_use, in an image that QEMU
 * opens and finds free of corruption. Right: everything that was written since it was made is in it.
 */
import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { type Random, seededRandom } from '../../src/base/random.ts';
import { guestOffset } from '../../src/base/units.ts';
import { DirtyBitmap } from '../../src/block/dirty-bitmap.ts';
import { TrackedBitmap } from '../../src/block/dirty-tracking.ts';
import type { Node } from '../../src/block/node.ts';
import { imageAfterCut } from '../support/power-cut.ts';
import { qemuImg } from '../support/qemu-img.ts';
import { FileLog, recordingFile } from '../support/recording-file.ts';
import { countOf, SEED } from '../support/run-parameters.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';

const SIZE = 2 << 20;
const GRANULARITY = 512;
const CUTS = countOf(25);

interface Case {
  readonly name: string;
  readonly options: string;
  readonly backing: boolean;
  /** Content of an unknown extension in front, which moves that of the bitmaps. */
  readonly foreignBytes?: number;
}

const CASES: readonly Case[] = [
  { name: 'small clusters', options: 'cluster_size=512', backing: false },
  { name: 'a backing name beside the extension', options: 'cluster_size=4k', backing: true },
  {
    name: 'an extension across two sectors',
    options: 'cluster_size=4k',
    backing: false,
    foreignBytes: 368,
  },
];

/** Where extensions begin in what qemu-img makes. */
const HEADER_BYTES = 112;

/** What bitmaps that are not in_use hold, when the cut is after `from` and before `until`. */
interface Version {
  readonly from: number;
  /** The next session has written, or the next version is saved. */
  until: number;
  /** Its image is closed: what was saved is on the disk. */
  closed: number;
  /** By name; null: there is none of this name. */
  readonly dirty: ReadonlyMap<string, ReadonlySet<number>>;
}

const granulesOf = (bitmap: DirtyBitmap): Set<number> => {
  const granules = new Set<number>();
  for (const { start, lengthBytes } of bitmap.dirtyRanges())
    for (let at = start; at < start + lengthBytes; at += GRANULARITY)
      granules.add(at / GRANULARITY);
  return granules;
};

const isSame = (a: ReadonlySet<number>, b: ReadonlySet<number>): boolean =>
  a.size === b.size && [...a].every((granule) => b.has(granule));

const makeImage = async (directory: string, c: Case): Promise<string> => {
  const image = join(directory, 'disk.qcow2');
  const backing: string[] = [];
  if (c.backing) {
    const base = join(directory, 'base.raw');
    await writeFile(base, new Uint8Array(SIZE).fill(5));
    backing.push('-b', base, '-F', 'raw');
  }
  await qemuImg(['create', '-q', '-f', 'qcow2', '-o', c.options, ...backing, image, String(SIZE)]);
  if (c.foreignBytes !== undefined) {
    const bytes = await readFile(image);
    assert.equal(bytes.readUInt32BE(HEADER_BYTES), 0, 'it has no extensions');
    bytes.writeUInt32BE(0x1234_5678, HEADER_BYTES);
    bytes.writeUInt32BE(c.foreignBytes, HEADER_BYTES + 4);
    await writeFile(image, bytes);
  }
  return image;
};

const newBitmap = (name: string): TrackedBitmap => {
  const content = new DirtyBitmap({ lengthBytes: SIZE, granularityBytes: GRANULARITY });
  return new TrackedBitmap({ name, content, recording: true, persistent: true });
};

/** Writes, and in each session something that changes the directory. `written` is called after the first write. */
const session = async (
  node: Node,
  index: number,
  random: Random,
  written: () => void,
): Promise<void> => {
  const { dirtyBitmaps } = node;
  if (index === 0) await dirtyBitmaps.add(newBitmap('first'));
  if (index === 1) await dirtyBitmaps.add(newBitmap('second'));
  for (let i = 0; i < 12; i++) {
    const length = 1 + random.below(4000);
    const offset = random.below(SIZE - length);
    await node.write(guestOffset(offset), new Uint8Array(length).fill(1 + random.below(255)));
    if (i === 0) written();
    if (random.below(5) === 0) await node.flush();
  }
  if (index === 2) await dirtyBitmaps.remove('first');
  if (index === 3) await dirtyBitmaps.remove('second');
};

/** Runs the sessions; the versions of the bitmaps, each from when its saving began. */
const runSessions = async (
  directory: string,
  image: string,
  log: FileLog,
  random: Random,
): Promise<Version[]> => {
  const file = recordingFile({ path: image, log });
  const versions: Version[] = [{ from: 0, until: 0, closed: 0, dirty: new Map() }];
  for (let index = 0; index < 4; index++) {
    const graph = await testGraph({ directory, file });
    const node = await graph.open({ path: image, format: 'qcow2', readOnly: false });
    const before = versions.at(-1);
    await session(node, index, random, () => {
      if (before !== undefined) before.until = log.events;
    });
    const dirty = new Map(
      [...node.dirtyBitmaps.bitmaps].map((b) => [b.name ?? '', granulesOf(b.content)] as const),
    );
    const from = log.events;
    await graph.close(node);
    versions.push({ from, until: Number.POSITIVE_INFINITY, closed: log.events, dirty });
  }
  return versions;
};

interface Cut {
  readonly directory: string;
  readonly image: Uint8Array;
  readonly versions: readonly Version[];
  readonly event: number;
  readonly what: string;
}

/** How many bitmaps it found that are not in_use. */
const checkCut = async ({ directory, image, versions, event, what }: Cut): Promise<number> => {
  const path = join(directory, 'cut.qcow2');
  await writeFile(path, image);
  await qemuImg(['check', '-q', '-f', 'qcow2', path], [0, 3]).catch((error: Error) => {
    throw new Error(`${what}: ${error.message}`);
  });
  const graph = await testGraph({ directory });
  const node = await graph.open({ path, format: 'qcow2', readOnly: true });
  const bitmaps = (await node.driver.bitmapStore?.load()) ?? [];
  await graph.close(node);
  const possible = versions.filter((v) => v.from <= event && event <= v.until);
  let sound = 0;
  for (const bitmap of bitmaps) {
    if (bitmap.inconsistent) continue;
    sound++;
    const found = granulesOf(bitmap.content);
    const isRight = possible.some(({ dirty }) => {
      const right = dirty.get(bitmap.name ?? '');
      return right !== undefined && isSame(found, right);
    });
    assert.ok(isRight, `${what}: bitmap '${bitmap.name}' is sound and wrong`);
  }
  return sound;
};

for (const c of CASES) {
  test(`a power cut leaves dirty bitmaps right or in_use: ${c.name}`, async (t) => {
    const directory = await scratchDirectory(t);
    const random = seededRandom(SEED + c.name.length);
    const image = await makeImage(directory, c);
    const start = new Uint8Array(await readFile(image));
    const log = new FileLog();
    const versions = await runSessions(directory, image, log, random);
    let sound = 0;
    for (let i = 0; i < CUTS; i++) {
      // Most things happen around a saving.
      const { from } = versions[1 + random.below(versions.length - 1)] ?? { from: 0 };
      const near = Math.min(log.events, from + random.below(40));
      const event = random.below(3) === 0 ? random.below(log.events + 1) : near;
      const survivors = random.below(5) === 0 ? 'none' : random;
      const what = `${c.name}, seed ${SEED}: cut after event ${event} of ${log.events}`;
      const cut = imageAfterCut(start, log, event, survivors);
      sound += await checkCut({ directory, image: cut, versions, event, what });
    }
    for (const { closed: event, dirty } of versions) {
      const what = `${c.name}, seed ${SEED}: cut after the closing, event ${event}`;
      const cut = imageAfterCut(start, log, event, 'none');
      const kept = await checkCut({ directory, image: cut, versions, event, what });
      assert.equal(kept, dirty.size, `${what}: all bitmaps are sound`);
    }
    t.diagnostic(
      `${log.changes.length} writes, ${log.flushes.length} flushes, ${sound} sound bitmaps`,
    );
  });
}
