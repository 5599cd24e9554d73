/**
 * Another lock, and QEMU was there in between: what it shows, of the image and its snapshots, is what it was, and the image is
 * consistent, whatever of a restart journal is taken up. An image of version 3 tells by its mark that it was opened for writing. Where that does not
 * help (version 2 has none; one that an overlay was committed to keeps it) it is searched.
 */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { open, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { promisify } from 'node:util';
import { guestOffset } from '../../src/base/units.ts';
import type { Node } from '../../src/block/node.ts';
import {
  autoclearOf,
  type JournaledImage,
  journaledImage,
  openJournaled,
  setAutoclear,
} from '../support/journaled-image.ts';
import { qemuImg, qemuImgJson, qemuIo } from '../support/qemu-img.ts';

const run = promisify(execFile);
const CLUSTER = 4096;
/** Clusters that one L2 table maps. */
const TABLE = CLUSTER / 8;
/** As much of a large image as is compared. */
const SHOWN_BYTES = 2 << 20;

type Way = 'by the mark' | 'by a search' | 'by a search, version 2';

interface Case {
  readonly what: string;
  readonly sizeBytes?: number;
  readonly options?: string;
  readonly made?: 'over a base' | 'packed' | 'with default clusters';
  /** By QEMU, before anything of ours. */
  readonly before?: readonly string[];
  /** QEMU makes one then. */
  readonly hasSnapshot?: boolean;
  readonly ours: (node: Node) => Promise<void>;
  readonly foreign: (place: JournaledImage) => Promise<unknown>;
  /** All without it. */
  readonly ways?: readonly Way[];
}

const at = (cluster: number) => guestOffset(cluster * CLUSTER);
const filled = (fill: number): Uint8Array => new Uint8Array(CLUSTER).fill(fill);
const write = (node: Node, cluster: number, fill: number): Promise<void> =>
  node.write(at(cluster), filled(fill));

const io =
  (...commands: string[]) =>
  (place: JournaledImage): Promise<unknown> =>
    qemuIo(place.path, commands, ['-f', 'qcow2', '-d', 'unmap']);

const img =
  (...args: string[]) =>
  (place: JournaledImage): Promise<unknown> =>
    qemuImg(args.map((arg) => (arg === 'DISK' ? place.path : arg)));

const writeSix = async (node: Node): Promise<void> => {
  for (let i = 0; i < 6; i++) await write(node, i, i + 1);
  await node.flush();
};

const CASES: readonly Case[] = [
  {
    what: 'its L1 table moves to where the journal has an L2 table, default clusters',
    made: 'with default clusters',
    sizeBytes: 1 << 30,
    before: ['write -P 1 0 1M'],
    ours: (node) => node.write(guestOffset(600 << 20), filled(2)),
    foreign: img('resize', '-q', '-f', 'qcow2', 'DISK', '+10G'),
  },
  {
    what: 'its L1 table moves to where the journal has an L2 table, small clusters',
    ours: (node) => write(node, 1, 2),
    foreign: img('resize', '-q', '-f', 'qcow2', 'DISK', '64M'),
  },
  {
    what: 'the L2 table of another L1 entry comes there, with the same entry',
    sizeBytes: 8 << 20,
    ours: (node) => write(node, TABLE + 3, 5),
    foreign: io(`write -P 99 ${(2 * TABLE + 3) * CLUSTER} ${CLUSTER}`),
  },
  {
    what: 'the same first write, to what a snapshot shares',
    before: [`write -P 1 0 ${8 * CLUSTER}`],
    hasSnapshot: true,
    ours: (node) => write(node, 3, 2),
    foreign: io(`write -P 99 ${3 * CLUSTER} ${CLUSTER}`),
  },
  {
    what: 'the same first write, to what is packed',
    made: 'packed',
    ours: (node) => write(node, 3, 200),
    foreign: io(`write -P 99 ${3 * CLUSTER} ${CLUSTER}`),
  },
  {
    what: 'the same discard, and the cluster is taken for another',
    made: 'over a base',
    ours: async (node) => {
      await writeSix(node);
      await node.discard(at(2), CLUSTER);
    },
    foreign: io(`discard ${2 * CLUSTER} ${CLUSTER}`, `write -P 99 ${20 * CLUSTER} ${CLUSTER}`),
    ways: ['by the mark', 'by a search'],
  },
  {
    what: 'data comes to where something was packed, and the journal packs behind it',
    ours: async (node) => {
      await write(node, 50, 5);
      await node.writeCompressed(at(0), filled(1));
      await node.flush();
      await node.writeCompressed(at(1), filled(2));
    },
    foreign: io(`write -P 98 0 ${CLUSTER}`, `write -P 99 ${20 * CLUSTER} ${CLUSTER}`),
  },
  {
    what: 'a snapshot of what the journal zeroes',
    made: 'over a base',
    ours: async (node) => {
      await writeSix(node);
      await node.writeZeroes(at(8), CLUSTER, { unmap: true });
    },
    foreign: img('snapshot', '-c', 'theirs', 'DISK'),
    ways: ['by the mark', 'by a search'],
  },
  {
    what: 'a snapshot of what the journal discards, packed',
    ours: async (node) => {
      for (let i = 0; i < 2; i++) await node.writeCompressed(at(i), filled(i + 1));
      await node.flush();
      await node.discard(at(1), CLUSTER);
    },
    foreign: img('snapshot', '-c', 'theirs', 'DISK'),
  },
  {
    what: 'a snapshot, and then it is killed with lazy refcounts',
    sizeBytes: 8 << 20,
    options: ',lazy_refcounts=on',
    before: [`write -P 1 ${2 * TABLE * CLUSTER} ${4 * CLUSTER}`],
    ours: (node) => write(node, 3, 2),
    foreign: async (place) => {
      await img('snapshot', '-c', 'theirs', 'DISK')(place);
      const commands = [`write -P 99 ${(2 * TABLE + 2) * CLUSTER} ${CLUSTER}`, 'flush', 'abort'];
      const args = commands.flatMap((command) => ['-c', command]);
      await assert.rejects(run('qemu-io', ['-f', 'qcow2', ...args, place.path]));
    },
    ways: ['by the mark', 'by a search'],
  },
  {
    what: 'the same cluster for the same, which the journal has taken and discarded',
    ours: async (node) => {
      await write(node, 0, 1);
      await node.flush();
      await write(node, 2, 3);
      await node.discard(at(2), CLUSTER);
    },
    foreign: io(`write -P 99 ${2 * CLUSTER} ${CLUSTER}`),
    // What it takes is what the journal would have given back by then.
    ways: ['by the mark'],
  },
];

const WAYS: readonly Way[] = ['by the mark', 'by a search', 'by a search, version 2'];

const made = async (t: TestContext, subject: Case, way: Way): Promise<JournaledImage> => {
  const place = await journaledImage(t, 'disk.qcow2');
  const { path, directory } = place;
  const { sizeBytes = 1 << 20, before, hasSnapshot = false, options = '' } = subject;
  const base = join(directory, 'base.raw');
  const bytes = Array.from({ length: 1 << 20 }, (_, i) => 1 + (Math.floor(i / CLUSTER) % 250));
  await writeFile(base, Buffer.from(bytes));
  const compat = way === 'by a search, version 2' ? 'compat=0.10' : 'compat=1.1';
  const clusters = subject.made === 'with default clusters' ? '' : `,cluster_size=${CLUSTER}`;
  const o = ['-o', `${compat}${clusters}${options}`];
  const backing = subject.made === 'over a base' ? ['-b', base, '-F', 'raw'] : [];
  if (subject.made === 'packed')
    await qemuImg(['convert', '-c', '-f', 'raw', '-O', 'qcow2', ...o, base, path]);
  else await qemuImg(['create', '-q', '-f', 'qcow2', ...o, ...backing, path, String(sizeBytes)]);
  if (before !== undefined) await qemuIo(path, before, ['-f', 'qcow2']);
  if (hasSnapshot) await qemuImg(['snapshot', '-c', 'kept', path]);
  return place;
};

/** What QEMU shows, of the image and its snapshots, by their names. */
const shown = async ({ directory, path }: JournaledImage): Promise<Map<string, Buffer>> => {
  const info = (await qemuImgJson('info', [path])) as { snapshots?: { name: string }[] };
  const views = new Map<string, Buffer>();
  for (const name of ['', ...(info.snapshots ?? []).map((snapshot) => snapshot.name)]) {
    const flat = join(directory, 'shown.raw');
    const which = name === '' ? [] : ['-l', name];
    await qemuImg(['convert', '-f', 'qcow2', ...which, '-O', 'raw', path, flat]);
    views.set(name, await headOf(flat));
  }
  return views;
};

const headOf = async (path: string): Promise<Buffer> => {
  await using file = await open(path);
  const bytes = Buffer.alloc(SHOWN_BYTES);
  const { bytesRead } = await file.read(bytes, 0, bytes.length, 0);
  return bytes.subarray(0, bytesRead);
};

const othersOf = (found: Buffer, before: Buffer): number[] => {
  const clusters = [...Array(Math.ceil(before.length / CLUSTER)).keys()];
  const part = (of: Buffer, i: number): Buffer => of.subarray(i * CLUSTER, (i + 1) * CLUSTER);
  return clusters.filter((i) => !part(found, i).equals(part(before, i)));
};

for (const subject of CASES)
  for (const way of subject.ways ?? WAYS)
    test(`what QEMU did after a kill stays, ${way}: ${subject.what}`, async (t) => {
      const place = await made(t, subject, way);
      const lost = await openJournaled(place, { tenure: 'one' });
      await subject.ours(lost.node);
      const mark = await autoclearOf(place.path);
      await subject.foreign(place);
      const before = await shown(place);
      if (way === 'by the mark') assert.equal(await autoclearOf(place.path), 0n);
      if (way === 'by a search') await setAutoclear(place.path, mark);
      const next = await openJournaled(place, { tenure: 'two' });
      await next.node.flush();
      await next.close();
      const told = next.lines.join('\n');
      assert.match(told, /another program has changed this image .* [1-9]\d* changes .* are lost/);
      assert.equal(/it was opened for writing/.test(told), way === 'by the mark', told);
      await qemuImg(['check', '-q', place.path], [0, 3]);
      for (const [name, bytes] of await shown(place)) {
        const which = name === '' ? 'the image' : `snapshot ${name}`;
        assert.deepEqual(othersOf(bytes, before.get(name) ?? Buffer.alloc(0)), [], which);
      }
    });

test('what QEMU commits to an image that was killed stays, though that takes no mark away', async (t) => {
  const place = await journaledImage(t, 'disk.qcow2');
  const { path, directory } = place;
  const options = ['-f', 'qcow2', '-o', `cluster_size=${CLUSTER}`];
  await qemuImg(['create', '-q', ...options, path, '1M']);
  const lost = await openJournaled(place, { tenure: 'one' });
  await writeSix(lost.node);
  await write(lost.node, 30, 7);
  const mark = await autoclearOf(path);
  const overlay = join(directory, 'overlay.qcow2');
  await qemuImg(['create', '-q', '-f', 'qcow2', '-b', path, '-F', 'qcow2', overlay]);
  await qemuIo(overlay, [`write -P 99 ${20 * CLUSTER} ${CLUSTER}`], ['-f', 'qcow2']);
  await qemuImg(['commit', '-q', overlay]);
  assert.equal(await autoclearOf(path), mark);
  const before = await shown(place);
  const next = await openJournaled(place, { tenure: 'two' });
  await next.close();
  assert.match(next.lines.join('\n'), /another program has changed this image .* are lost/);
  await qemuImg(['check', '-q', path], [0, 3]);
  assert.deepEqual(await shown(place), before);
});
