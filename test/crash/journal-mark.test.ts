/**
 * The mark of a restart journal in the header (drivers/qcow2/journal-mark.ts): what was answered is taken up under another lock as long as
 * nobody else has had the image open for writing, and by nobody afterwards.
 */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { promisify } from 'node:util';
import { guestOffset } from '../../src/base/units.ts';
import type { Node } from '../../src/block/node.ts';
import { delayedFile } from '../support/delayed-file.ts';
import {
  autoclearOf,
  type JournaledImage,
  type JournaledOpening,
  journaledImage,
  openJournaled,
  setAutoclear,
} from '../support/journaled-image.ts';
import { assertClean, qemuImg, qemuImgJson, qemuIo } from '../support/qemu-img.ts';
import { vdiskfs } from '../support/vdiskfs.ts';

const run = promisify(execFile);
const CLUSTER = 65_536;
const MARKED = 1n << 63n;
const LOST = /another program has changed this image .*\(it was opened for writing\).* are lost/;

const made = async (t: TestContext, options = 'compat=1.1'): Promise<JournaledImage> => {
  const place = await journaledImage(t, 'disk.qcow2');
  await qemuImg(['create', '-q', '-f', 'qcow2', '-o', options, place.path, '4M']);
  return place;
};

const write = (node: Node, cluster: number, fill: number): Promise<void> =>
  node.write(guestOffset(cluster * CLUSTER), new Uint8Array(CLUSTER).fill(fill));

const assertFound = async (node: Node, cluster: number, fill: number): Promise<void> => {
  const found = new Uint8Array(CLUSTER);
  await node.read(guestOffset(cluster * CLUSTER), found);
  assert.deepEqual(found, new Uint8Array(CLUSTER).fill(fill), `cluster ${cluster}`);
};

/** An engine that has answered a write with a sync after it, and one without; nobody closes it. */
const killed = async (place: JournaledImage, tenure = 'one'): Promise<void> => {
  const { node } = await openJournaled(place, { tenure });
  await write(node, 0, 1);
  await node.flush();
  await write(node, 1, 2);
};

const assertTakenUp = async (place: JournaledImage): Promise<void> => {
  const next = await openJournaled(place, { tenure: 'two' });
  assert.match(next.lines.join('\n'), /1 changes taken up from the restart journal/);
  await assertFound(next.node, 0, 1);
  await assertFound(next.node, 1, 2);
  await next.close();
  assert.equal(await autoclearOf(place.path), 0n);
  await assertClean(place.path);
};

const assertDropped = async (place: JournaledImage): Promise<JournaledOpening> => {
  const next = await openJournaled(place, { tenure: 'two' });
  assert.match(next.lines.join('\n'), LOST);
  assert.deepEqual(await readdir(place.journals), [], 'it is forgotten');
  return next;
};

const READERS: readonly (readonly string[])[] = [
  [],
  ['qemu-img', 'info', 'DISK'],
  ['qemu-img', 'check', 'DISK'],
  ['qemu-img', 'snapshot', '-l', 'DISK'],
  ['qemu-img', 'convert', '-O', 'raw', 'DISK', 'DIR/copy.raw'],
  ['qemu-img', 'create', '-f', 'qcow2', '-b', 'DISK', '-F', 'qcow2', 'DIR/overlay.qcow2'],
  ['qemu-io', '-r', '-f', 'qcow2', '-c', 'read 0 1M', 'DISK'],
  ['vdiskfs', 'info', 'DISK'],
  ['vdiskfs', 'check', 'DISK'],
];

const runOn = async ({ path, directory }: JournaledImage, line: readonly string[]) => {
  const [program = '', ...args] = line.map((word) =>
    word.replace('DISK', path).replace('DIR', directory),
  );
  if (program !== 'vdiskfs') return run(program, args);
  const done = await vdiskfs(args);
  assert.equal(done.status, 0, done.stderr);
  return done;
};

for (const line of READERS) {
  const who = line.length === 0 ? 'nobody' : line.join(' ');
  test(`another lock, and ${who} was there in between: all that was answered is there`, async (t) => {
    const place = await made(t);
    await killed(place);
    if (line.length > 0) await runOn(place, line);
    await assertTakenUp(place);
  });
}

const WRITERS: readonly (readonly string[])[] = [
  // To what is there already: nothing but the mark tells of it.
  ['qemu-io', '-f', 'qcow2', '-c', 'write -P 9 0 4k', 'DISK'],
  ['qemu-img', 'check', '-r', 'all', 'DISK'],
  ['qemu-img', 'amend', '-o', 'lazy_refcounts=on', 'DISK'],
  ['qemu-img', 'create', '-f', 'qcow2', 'DISK', '4M'],
  ['vdiskfs', 'resize', 'DISK', '8M'],
  ['vdiskfs', 'snapshot', '-c', 'theirs', 'DISK'],
];

for (const line of WRITERS) {
  test(`another lock, and ${line.join(' ')} was run in between: nothing is taken up`, async (t) => {
    const place = await made(t);
    await killed(place);
    await runOn(place, line);
    const next = await assertDropped(place);
    await assertFound(next.node, 1, 0);
    await write(next.node, 2, 3);
    await next.close();
    await assertClean(place.path);
  });
}

test('our own repair takes the mark away when it changes something, and not when it looks', async (t) => {
  const place = await made(t);
  await killed(place);
  const image = await readFile(place.path);
  // A cluster that nobody names, counted.
  const block = Number(image.readBigUInt64BE(Number(image.readBigUInt64BE(48))));
  image.writeUInt16BE(1, block + (image.length / CLUSTER) * 2);
  await writeFile(place.path, Buffer.concat([image, Buffer.alloc(CLUSTER)]));
  const mark = await autoclearOf(place.path);
  assert.equal((await vdiskfs(['check', place.path])).status, 3);
  assert.equal(await autoclearOf(place.path), mark);
  assert.equal((await vdiskfs(['check', '-r', 'leaks', place.path])).status, 0);
  assert.equal(await autoclearOf(place.path), 0n);
  await (await assertDropped(place)).close();
});

test('another image that is copied over it, with a mark of its own, is another', async (t) => {
  const place = await made(t);
  await killed(place);
  const { directory } = place;
  const journals = join(directory, 'elsewhere');
  const other: JournaledImage = { directory, journals, path: join(directory, 'other.qcow2') };
  await mkdir(other.journals);
  await qemuImg(['create', '-q', '-f', 'qcow2', other.path, '4M']);
  await killed(other);
  assert.equal((await autoclearOf(other.path)) & MARKED, MARKED);
  await writeFile(place.path, await readFile(other.path));
  await (await assertDropped(place)).close();
  await assertClean(place.path);
});

test('a mount that keeps its journals elsewhere is another program, also when it was killed', async (t) => {
  const place = await made(t);
  await killed(place);
  const elsewhere = { ...place, journals: join(place.directory, 'elsewhere') };
  await mkdir(elsewhere.journals);
  const other = await openJournaled(elsewhere, { tenure: null });
  await write(other.node, 0, 7);
  const next = await assertDropped(place);
  await assertFound(next.node, 0, 7);
  await next.close();
});

test('an image that is only read now shows what was answered, or what another program has left', async (t) => {
  for (const isForeign of [false, true]) {
    const place = await made(t);
    await killed(place);
    if (isForeign) await qemuIo(place.path, ['write -P 9 0 64k'], ['-f', 'qcow2']);
    const next = await openJournaled(place, { tenure: 'two', readOnly: true });
    assert.equal(LOST.test(next.lines.join('\n')), isForeign);
    await assertFound(next.node, 0, isForeign ? 9 : 1);
    await assertFound(next.node, 1, isForeign ? 0 : 2);
    await next.close();
  }
});

test('the mark stays while engines die, and goes with a clean close; the rest of the header is what it was', async (t) => {
  const place = await made(t);
  await qemuIo(place.path, ['write -P 1 0 4M'], ['-f', 'qcow2']);
  const before = (await readFile(place.path)).subarray(0, CLUSTER);
  const first = await openJournaled(place, { tenure: 'one' });
  assert.equal(await autoclearOf(place.path), 0n, 'nothing is changed yet');
  await first.node.discard(guestOffset(0), CLUSTER);
  const mark = await autoclearOf(place.path);
  assert.equal(mark & MARKED, MARKED);
  assert.equal(mark & 0xffff_ffffn, 0n);
  for (const tenure of ['one', 'two', 'two']) {
    const { node } = await openJournaled(place, { tenure });
    assert.equal(await autoclearOf(place.path), mark);
    await write(node, 1, 5);
    await node.discard(guestOffset(2 * CLUSTER), CLUSTER);
    assert.notEqual((await autoclearOf(place.path)) & MARKED, 0n);
  }
  const last = await openJournaled(place, { tenure: 'two' });
  await assertFound(last.node, 1, 5);
  await last.close();
  assert.deepEqual((await readFile(place.path)).subarray(0, CLUSTER), before);
  await assertClean(place.path);
  const info = JSON.stringify(await qemuImgJson('info', [place.path]));
  assert.doesNotMatch(info, /"corrupt": ?true/);
});

test('a mark without a journal is harmless: of a kill before the first record, and of a boot that is over', async (t) => {
  const place = await made(t);
  await killed(place);
  await rm(place.journals, { recursive: true });
  await mkdir(place.journals);
  const mark = await autoclearOf(place.path);
  const { node } = await openJournaled(place, { tenure: 'two' });
  await write(node, 1, 4);
  const now = await autoclearOf(place.path);
  assert.equal(now & MARKED, MARKED);
  assert.notEqual(now, mark, 'that of the journal which there is now');
  const third = await openJournaled(place, { tenure: 'three' });
  await assertFound(third.node, 1, 4);
  await third.close();
  assert.equal(await autoclearOf(place.path), 0n);
  await setAutoclear(place.path, mark);
  await (await openJournaled(place, { tenure: 'four' })).close();
  assert.equal(await autoclearOf(place.path), 0n, 'a close without a change takes it away, too');
});

test('bits that others have set go when the mark comes', async (t) => {
  const place = await made(t);
  await setAutoclear(place.path, (1n << 50n) | (1n << 7n));
  await killed(place);
  const bits = await autoclearOf(place.path);
  assert.equal(bits & MARKED, MARKED);
  assert.equal(bits & 0xffff_ffffn, 0n);
  await assertTakenUp(place);
});

test('a close that fails leaves the mark with the journal', async (t) => {
  const place = await made(t);
  let fails = false;
  const host = {
    before: async (operation: string) => {
      if (fails && operation === 'flush') throw new Error('the fault of this test');
    },
  };
  const file = delayedFile(place.path, host);
  const first = await openJournaled(place, { tenure: 'one', file });
  await write(first.node, 0, 1);
  await first.node.flush();
  await write(first.node, 1, 2);
  fails = true;
  await assert.rejects(first.close(), /the fault of this test/);
  assert.equal((await autoclearOf(place.path)) & MARKED, MARKED);
  await assertTakenUp(place);
});

test('bitmaps and a raw data file keep their bits beside the mark', async (t) => {
  const bitmaps = await made(t);
  await qemuImg(['bitmap', '--add', bitmaps.path, 'kept']);
  await killed(bitmaps);
  assert.equal((await autoclearOf(bitmaps.path)) & 0xffff_ffffn, 1n);
  const next = await openJournaled(bitmaps, { tenure: 'two' });
  await assertFound(next.node, 1, 2);
  await next.close();
  assert.equal(await autoclearOf(bitmaps.path), 1n);
  await assertClean(bitmaps.path);
  const raw = await made(t, `data_file=${bitmaps.directory}/disk.raw,data_file_raw=on`);
  const writer = await openJournaled(
    { ...raw, directory: join(raw.directory, '..') },
    { tenure: 'one' },
  );
  await write(writer.node, 0, 1);
  assert.equal((await autoclearOf(raw.path)) & 0xffff_ffffn, 2n);
  await writer.close();
  assert.equal(await autoclearOf(raw.path), 2n);
});

test('version 2 has no such bits, and no mark', async (t) => {
  const place = await made(t, 'compat=0.10');
  const before = (await readFile(place.path)).subarray(0, CLUSTER);
  await killed(place);
  assert.deepEqual((await readFile(place.path)).subarray(0, CLUSTER), before);
  const next = await openJournaled(place, { tenure: 'two' });
  await assertFound(next.node, 1, 2);
  await next.close();
  assert.deepEqual((await readFile(place.path)).subarray(0, CLUSTER), before);
});
