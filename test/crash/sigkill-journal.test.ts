/** What a restart journal takes up when something was in its way: it did not fit the image once, or answers came in another order. */
import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { type TestContext, test } from 'node:test';
import { BlockError } from '../../src/base/block-error.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { Node } from '../../src/block/node.ts';
import { delayedFile, type Interference } from '../support/delayed-file.ts';
import {
  type JournaledImage,
  type JournaledOpening,
  journaledImage,
  openJournaled,
} from '../support/journaled-image.ts';
import { qemuImg, qemuIo } from '../support/qemu-img.ts';

const CLUSTER = 4096;
const DISK_BYTES = 256 << 10;

type Compat = '1.1' | '0.10';

const made = async (t: TestContext, compat: Compat = '1.1'): Promise<JournaledImage> => {
  const place = await journaledImage(t, 'disk.qcow2');
  const options = ['-f', 'qcow2', '-o', `cluster_size=${CLUSTER},compat=${compat}`];
  await qemuImg(['create', '-q', ...options, place.path, String(DISK_BYTES)]);
  return place;
};

/** Opens it; nobody closes what is killed. */
const opened = (
  place: JournaledImage,
  host: Interference | null = null,
  tenure: string | null = 'one',
): Promise<JournaledOpening> =>
  openJournaled(place, { tenure, ...(host && { file: delayedFile(place.path, host) }) });

const filled = (fill: number): Uint8Array => new Uint8Array(CLUSTER).fill(fill);

const assertFound = async (node: Node, cluster: number, fill: number): Promise<void> => {
  const found = filled(0);
  await node.read(guestOffset(cluster * CLUSTER), found);
  assert.deepEqual(found, filled(fill), `cluster ${cluster}`);
};

const never = new Promise<void>(() => undefined);

test('packed clusters that share one of the host survive in whatever order they were answered', async (t) => {
  const place = await made(t);
  let held = 0;
  // Not a field of the header.
  const isPacked = (lengthBytes: number): boolean => lengthBytes > 8 && lengthBytes < 100;
  const host: Interference = {
    before: async (operation, _offset, lengthBytes) => {
      if (operation === 'write' && isPacked(lengthBytes) && held++ === 0) await never;
    },
  };
  const { node } = await opened(place, host);
  const first = node.writeCompressed(guestOffset(0), filled(1));
  void first.catch(() => undefined);
  while (held === 0) await new Promise((resolve) => setTimeout(resolve, 1));
  await node.writeCompressed(guestOffset(CLUSTER), filled(2));
  await node.writeCompressed(guestOffset(2 * CLUSTER), filled(3));
  const next = await opened(place);
  await assertFound(next.node, 1, 2);
  await assertFound(next.node, 2, 3);
  await next.close();
  await qemuImg(['check', place.path], [0, 3]);
});

test('after a journal that was lost to another program, what is answered next is kept, and nothing else', async (t) => {
  const place = await made(t);
  const before = new Uint8Array(await readFile(place.path));
  const lost = await opened(place);
  await lost.node.write(guestOffset(0), filled(1));
  await lost.node.flush();
  await lost.node.write(guestOffset(CLUSTER), filled(2));
  // The table that its journal changes an entry of is not there any more.
  await writeFile(place.path, before);
  await qemuImg(['resize', '-q', '-f', 'qcow2', place.path, '1M']);
  const other = Buffer.alloc(CLUSTER, 0xaa);
  await writeFile(place.path, Buffer.concat([await readFile(place.path), other, other]));
  const second = await opened(place);
  await second.node.write(guestOffset(2 * CLUSTER), filled(3));
  const third = await opened(place);
  await assertFound(third.node, 2, 3);
  await assertFound(third.node, 1, 0);
  await third.close();
  await qemuImg(['check', place.path], [0, 3]);
});

test('a host cluster of two packed ones may be taken, and counted on disk, before its next owner is answered', async (t) => {
  const place = await made(t);
  let holds: 'nothing' | 'the next write' | 'each flush' = 'nothing';
  const host: Interference = {
    before: async (operation) => {
      if (operation === 'flush' && holds === 'each flush') await never;
      if (operation !== 'write' || holds !== 'the next write') return;
      holds = 'nothing';
      await never;
    },
  };
  const { node } = await opened(place, host);
  await node.writeCompressed(guestOffset(0), filled(1));
  await node.writeCompressed(guestOffset(CLUSTER), filled(2));
  await node.discard(guestOffset(0), 2 * CLUSTER);
  await node.flush();
  // What was unmapped is given back by itself.
  await new Promise((resolve) => setTimeout(resolve, 100));
  holds = 'the next write';
  void node.write(guestOffset(10 * CLUSTER), filled(3));
  await new Promise((resolve) => setTimeout(resolve, 50));
  assert.equal(holds, 'nothing', 'it has taken a place, and is not written');
  await node.write(guestOffset(20 * CLUSTER), filled(4));
  holds = 'each flush';
  void node.flush();
  await new Promise((resolve) => setTimeout(resolve, 50));
  const next = await opened(place);
  await assertFound(next.node, 20, 4);
  await next.close();
  await qemuImg(['check', place.path], [0, 3]);
});

/** What the killed one has answered; QEMU's commands in between; what is found after it. */
const FOREIGN: readonly {
  readonly what: string;
  /** Clusters that were written and synced before. */
  readonly synced: number;
  readonly commands: readonly string[];
  readonly found: readonly (readonly [cluster: number, fill: number])[];
}[] = [
  {
    what: 'nothing',
    synced: 1,
    commands: [],
    found: [
      [0, 1],
      [1, 2],
      [2, 3],
    ],
  },
  { what: 'nothing of a new image', synced: 0, commands: [], found: [[1, 2]] },
  {
    what: 'what lies elsewhere',
    synced: 1,
    commands: [`write -P 8 ${20 * CLUSTER} ${2 * CLUSTER}`],
    found: [
      [0, 1],
      [20, 8],
      [21, 8],
    ],
  },
  {
    what: 'the first clusters of a new image',
    synced: 0,
    commands: [`write -P 8 ${20 * CLUSTER} ${2 * CLUSTER}`],
    found: [
      [20, 8],
      [21, 8],
    ],
  },
  {
    what: 'the same clusters of a new image',
    synced: 0,
    commands: [`write -P 8 ${CLUSTER} ${2 * CLUSTER}`],
    found: [
      [1, 8],
      [2, 8],
    ],
  },
  {
    what: 'zeros of a new image',
    synced: 0,
    commands: [`write -z ${30 * CLUSTER} ${CLUSTER}`, `write -P 8 ${20 * CLUSTER} ${CLUSTER}`],
    found: [
      [20, 8],
      [30, 0],
    ],
  },
];

// Of version 3 the header tells that QEMU was there, of version 2 the tables do.
for (const compat of ['1.1', '0.10'] as const)
  for (const { what, synced, commands, found } of FOREIGN)
    test(`another mount takes up a journal, where QEMU has written in between: ${what}, ${compat}`, async (t) => {
      const place = await made(t, compat);
      const lost = await opened(place);
      for (let i = 0; i < synced; i++) await lost.node.write(guestOffset(i * CLUSTER), filled(1));
      await lost.node.flush();
      await lost.node.write(guestOffset(CLUSTER), filled(2));
      await lost.node.write(guestOffset(2 * CLUSTER), filled(3));
      if (commands.length > 0) await qemuIo(place.path, commands, ['-f', 'qcow2']);
      const next = await opened(place, null, 'two');
      for (const [cluster, fill] of found) await assertFound(next.node, cluster, fill);
      await next.node.write(guestOffset(3 * CLUSTER), filled(4));
      for (const [cluster, fill] of found) await assertFound(next.node, cluster, fill);
      await next.close();
      await qemuImg(['check', '-q', place.path]);
    });

/** Images of which a journal knows more than clusters that were nowhere. */
const KINDS: readonly { readonly what: string; readonly options: string }[] = [
  { what: 'plain', options: '' },
  { what: 'subclusters', options: ',cluster_size=16k,extended_l2=on' },
  { what: 'version 2', options: ',compat=0.10' },
  { what: 'a data file', options: ',data_file=DIR/disk.data' },
];

for (const { what, options } of KINDS) {
  test(`another mount takes up all of a journal where nobody was there: ${what}`, async (t) => {
    const place = await journaledImage(t, 'disk.qcow2');
    const hasOwnSize = options.includes('cluster_size');
    const all = `${hasOwnSize ? '' : ',cluster_size=4k'}${options}`.slice(1);
    const made = all.replace('DIR', place.directory);
    await qemuImg(['create', '-q', '-f', 'qcow2', '-o', made, place.path, '4G']);
    const isPlain = !options.includes('data_file');
    await qemuIo(place.path, ['write -P 1 0 1M', 'write -P 2 2G 64k'], ['-f', 'qcow2']);
    if (isPlain) await qemuImg(['snapshot', '-c', 'kept', place.path]);
    const lost = await opened(place);
    const far = 1 << 18;
    // Written anew, taken away, packed over what is shared, and in places of which no table knows yet.
    for (const cluster of [0, 1, 200, far, far + 1, far * 3])
      await lost.node.write(guestOffset(cluster * CLUSTER), filled(7));
    await lost.node.discard(guestOffset(2 * CLUSTER), 4 * CLUSTER);
    await lost.node.writeZeroes(guestOffset(8 * CLUSTER), 4 * CLUSTER, { unmap: false });
    if (isPlain && !hasOwnSize)
      await lost.node.writeCompressed(guestOffset(100 * CLUSTER), filled(6));
    await lost.node.write(guestOffset(201 * CLUSTER), filled(8));
    const { node, lines, close } = await opened(place, null, null);
    for (const cluster of [0, 1, 200, far, far + 1, far * 3]) await assertFound(node, cluster, 7);
    for (const cluster of [2, 3, 8, 9]) await assertFound(node, cluster, 0);
    await assertFound(node, 201, 8);
    await close();
    assert.match(lines.join('\n'), /changes taken up/);
    await qemuImg(['check', '-q', place.path], [0, 3]);
  });
}

test('a host cluster that was given back stays with the program that has taken it since', async (t) => {
  const place = await made(t, '0.10');
  let fails = false;
  const host: Interference = {
    before: async (operation, _offset, lengthBytes) => {
      if (fails && operation === 'write' && lengthBytes === CLUSTER)
        throw new BlockError({ kind: 'no-space', message: 'the fault of this test' });
    },
  };
  const lost = await opened(place, host);
  await lost.node.write(guestOffset(0), filled(1));
  await lost.node.flush();
  fails = true;
  await assert.rejects(lost.node.write(guestOffset(CLUSTER), filled(2)), /the fault of this test/);
  await qemuIo(place.path, [`write -P 8 ${20 * CLUSTER} ${CLUSTER}`], ['-f', 'qcow2']);
  const next = await opened(place, null, 'two');
  await next.node.write(guestOffset(2 * CLUSTER), filled(4));
  await assertFound(next.node, 20, 8);
  await next.close();
  await qemuImg(['check', '-q', place.path]);
});

const DAMAGES: readonly [string, (image: Buffer, snapshotTable: number) => void][] = [
  [
    'a snapshot that was damaged before does not take what was answered',
    (image, table) => image.writeBigUInt64BE(1n << 40n, Number(image.readBigUInt64BE(table))),
  ],
  [
    'snapshots of which nobody knows where they are do not take what was answered',
    // The length of its extra data.
    (image, table) => image.writeUInt32BE(2000, table + 36),
  ],
];

for (const [what, damage] of DAMAGES) {
  test(what, async (t) => {
    const place = await made(t);
    await qemuIo(place.path, [`write -P 1 0 ${CLUSTER}`], ['-f', 'qcow2']);
    await qemuImg(['snapshot', '-c', 'kept', place.path]);
    const image = await readFile(place.path);
    damage(image, Number(image.readBigUInt64BE(64)));
    await writeFile(place.path, image);
    const lost = await opened(place);
    await lost.node.write(guestOffset(CLUSTER), filled(2));
    const next = await opened(place, null, 'two');
    await assertFound(next.node, 1, 2);
    await next.close();
  });
}

/** Where the first L2 table lies that an L1 table names. */
const firstTable = (image: Buffer, l1Offset: number): number =>
  Number(image.readBigUInt64BE(l1Offset) & 0xff_ffff_ffff_fe00n);

/** Reads of the cluster there fail. */
const unreadable = (at: number): Interference => ({
  before: async (operation, offset) => {
    if (operation === 'read' && offset >= at && offset < at + CLUSTER)
      throw new BlockError({ kind: 'io', message: 'the fault of this test' });
  },
});

test('a table that cannot be read fails an opening that has to know it, by its name; of a snapshot it does not', async (t) => {
  const place = await made(t);
  await qemuIo(place.path, [`write -P 1 0 ${CLUSTER}`], ['-f', 'qcow2']);
  await qemuImg(['snapshot', '-c', 'kept', place.path]);
  await qemuIo(place.path, [`write -P 2 0 ${CLUSTER}`], ['-f', 'qcow2']);
  const image = await readFile(place.path);
  const active = firstTable(image, Number(image.readBigUInt64BE(40)));
  const saved = firstTable(image, Number(image.readBigUInt64BE(Number(image.readBigUInt64BE(64)))));
  assert.notEqual(active, saved);
  const lost = await opened(place);
  // Of another table: nothing else is read.
  await lost.node.resize(8 << 20);
  await lost.node.write(guestOffset(6 << 20), filled(3));
  const named = new RegExp(`L2 table at 0x${active.toString(16)} cannot be read`);
  await assert.rejects(opened(place, unreadable(active), 'two'), named);
  const next = await opened(place, unreadable(saved), 'two');
  await assertFound(next.node, (6 << 20) / CLUSTER, 3);
  await next.close();
});
