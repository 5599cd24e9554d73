/** Internal snapshots of a qcow2 image: what one failing write or flush leaves, and what changes of one another's do. */
import assert from 'node:assert/strict';
import { copyFile, mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { present } from '../../src/base/assert.ts';
import { BlockError } from '../../src/base/block-error.ts';
import { seededRandom } from '../../src/base/random.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { Node } from '../../src/block/node.ts';
import { delayedFile, type Interference } from '../support/delayed-file.ts';
import { imageView } from '../support/image-view.ts';
import { qemuImg, qemuImgJson, qemuIo } from '../support/qemu-img.ts';
import { countOf, SEED } from '../support/run-parameters.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';

const FAILURES = countOf(15);
/** Changes of snapshots among requests in flight. */
const CHANGES = countOf(20);
const SIZE = 256 << 10;

type Change = 'create' | 'apply' | 'remove';

const change = (node: Node, kind: Change): Promise<void> =>
  node.withSnapshots(kind, async (snapshots) => {
    if (kind === 'create') {
      await snapshots.create({ name: 'new', dateSeconds: 1, dateNanoseconds: 1 });
      return;
    }
    await snapshots[kind](present((await snapshots.list())[0], 'there is one').id);
  });

const flat = async (image: string, args: readonly string[] = []): Promise<Buffer> => {
  await qemuImg(['convert', '-f', 'qcow2', '-O', 'raw', ...args, image, `${image}.flat`]);
  return readFile(`${image}.flat`);
};

const names = async (image: string): Promise<string[]> => {
  const { snapshots = [] } = (await qemuImgJson('info', ['-f', 'qcow2', image])) as {
    snapshots?: { name: string }[];
  };
  return snapshots.map(({ name }) => name);
};

/** Fails one write, zeroing or flush of a change, counted from its beginning; whether there were so many. */
const failOnce = async (
  path: string,
  kind: Change,
  failing: number,
): Promise<{ readonly happened: boolean; readonly isDone: boolean }> => {
  const interference: Interference = { before: async () => undefined };
  const graph = await testGraph({
    directory: join(path, '..'),
    file: delayedFile(path, interference),
  });
  const node = await graph.open({ path, format: 'qcow2', readOnly: false });
  let operations = 0;
  interference.before = async (operation) => {
    if (operation === 'read' || operations++ !== failing) return;
    throw new BlockError({ kind: 'no-space', message: 'the disk is full' });
  };
  let isDone = true;
  await change(node, kind).catch((error: unknown) => {
    assert.ok(error instanceof BlockError && error.errno === 'ENOSPC', String(error));
    isDone = false;
  });
  interference.before = async () => undefined;
  await node.write(guestOffset(SIZE - 4096), new Uint8Array(4096).fill(0x77));
  await node.flush();
  await graph.close(node);
  return { happened: operations > failing, isDone };
};

test('a snapshot change of which one write fails is done or not done, and loses nothing', async (t) => {
  const directory = await scratchDirectory(t);
  const made = join(directory, 'made.qcow2');
  await qemuImg(['create', '-q', '-f', 'qcow2', '-o', 'cluster_size=4k', made, String(SIZE)]);
  await qemuIo(made, ['write -P 1 0 200k']);
  await qemuImg(['snapshot', '-c', 'old', made]);
  await qemuIo(made, ['write -P 2 64k 64k']);
  const [active, old] = [await flat(made), await flat(made, ['-l', 'snapshot.name=old'])];
  const random = seededRandom(SEED);
  const path = join(directory, 'disk.qcow2');
  for (let i = 0; i < FAILURES; i++) {
    const kind = (['create', 'apply', 'remove'] as const)[i % 3] ?? 'create';
    await copyFile(made, path);
    const failing = random.below(30);
    const { happened, isDone } = await failOnce(path, kind, failing);
    const what = `seed ${SEED}: ${kind}, operation ${failing} fails: done ${isDone}`;
    // Opening it for writing mends what a failure after the change left.
    const graph = await testGraph({ directory });
    await graph.close(await graph.open({ path, format: 'qcow2', readOnly: false }));
    await qemuImg(['check', '-q', '-f', 'qcow2', path]).catch((error: Error) => {
      throw new Error(`${what}: ${error.message}`);
    });
    const found = await names(path);
    const applied = kind === 'apply' && (await flat(path))[64 << 10] === 1;
    const expected = Buffer.from(applied ? old : active).fill(0x77, SIZE - 4096);
    assert.deepEqual(await flat(path), expected, what);
    if (isDone && kind === 'create') assert.deepEqual(found, ['old', 'new'], what);
    if (isDone && kind === 'apply') assert.ok(applied, what);
    if (isDone && kind === 'remove') assert.deepEqual(found, [], what);
    if (!happened) assert.ok(isDone, what);
    if (found.includes('old'))
      assert.deepEqual(await flat(path, ['-l', 'snapshot.name=old']), old, what);
    if (found.includes('new'))
      assert.deepEqual(await flat(path, ['-l', 'snapshot.name=new']), active, what);
  }
});

test('what a snapshot shows stays while the image is written, packed, zeroed and resized beside it', async (t) => {
  const directory = await scratchDirectory(t);
  const path = join(directory, 'disk.qcow2');
  await qemuImg(['create', '-q', '-f', 'qcow2', '-o', 'cluster_size=4k', path, String(SIZE)]);
  await qemuIo(path, ['write -P 1 0 200k', 'write -c -P 2 200k 4k', 'write -c -P 3 204k 4k']);
  const before = await flat(path);
  const graph = await testGraph({ directory });
  const node = await graph.open({ path, format: 'qcow2', readOnly: false });
  await change(node, 'create');
  const snapshot = '1';
  const view = await graph.open({ path, format: 'qcow2', readOnly: true, snapshot });
  await assert.rejects(view.write(guestOffset(0), new Uint8Array(512)), { errno: 'EROFS' });
  const random = seededRandom(SEED);
  for (let i = 0; i < 60; i++) {
    const at = random.below((SIZE - 8192) / 4096) * 4096;
    const bytes = new Uint8Array(4096).fill(100 + (i % 50));
    const kind = random.below(5);
    if (kind === 0) await node.writeCompressed(guestOffset(at), bytes);
    else if (kind === 1) await node.discard(guestOffset(at), 4096);
    else await node.write(guestOffset(at + 100), bytes.subarray(100));
    if (i % 20 === 10) await node.resize(SIZE - 8192);
    if (i % 20 === 15) await node.resize(SIZE + (1 << 20));
    if (i % 10 === 9) await node.flush();
    const shown = new Uint8Array(SIZE);
    await view.read(guestOffset(0), shown);
    assert.equal(Buffer.compare(shown, before), 0, `after step ${i}, seed ${SEED}`);
  }
  await graph.close(view);
  await graph.close(node);
  await qemuImg(['check', '-q', '-f', 'qcow2', path]);
  // QEMU shows it in the size that the image has now.
  const theirs = await flat(path, ['-l', 'snapshot.name=new']);
  assert.deepEqual(theirs.subarray(0, SIZE), before);
});

const WORKERS = 32;
const SECTOR = 512;

test('snapshots made, applied and deleted among 32 requests in flight are of one moment, and lose no answered write', async (t) => {
  const directory = await scratchDirectory(t);
  const path = join(directory, 'disk.qcow2');
  await qemuImg(['create', '-q', '-f', 'qcow2', '-o', 'cluster_size=4k', path, String(SIZE)]);
  const journalDirectory = join(directory, 'journals');
  await mkdir(journalDirectory);
  const graph = await testGraph({ directory, journalDirectory });
  const view = imageView(graph, { path, format: 'qcow2' });
  await view.open();
  const random = seededRandom(SEED);
  const content = new Uint8Array(SIZE);
  let isOver = false;
  // Each writes sectors of its own, but eight of them meet in every cluster.
  const workers = Array.from({ length: WORKERS }, async (_, worker) => {
    for (let round = 0; !isOver; round++) {
      const at = (worker + WORKERS * random.below(SIZE / SECTOR / WORKERS)) * SECTOR;
      const value = round % 5 === 4 ? 0 : 1 + random.below(250);
      if (value === 0) await view.punchHole(guestOffset(at), SECTOR);
      else await view.write(guestOffset(at), new Uint8Array(SECTOR).fill(value));
      content.fill(value, at, at + SECTOR);
      if (round % 8 === 7) await view.flush();
      if (round % 4 === 3) await new Promise((resolve) => setImmediate(resolve));
    }
  });
  const kept = new Map<string, Uint8Array>();
  for (let i = 0; i < CHANGES; i++) {
    const kind = kept.size === 0 ? 'create' : random.pick(['create', 'create', 'apply', 'remove']);
    await view.drained(async () => {
      const root = present(view.root, 'the view is open');
      const shown = new Uint8Array(SIZE);
      await root.read(guestOffset(0), shown);
      assert.equal(Buffer.compare(shown, content), 0, `before ${kind} ${i}, seed ${SEED}`);
      await root.withSnapshots(kind as Change, async (snapshots) => {
        if (kind === 'create') {
          const made = { name: `s${i}`, dateSeconds: 1, dateNanoseconds: i };
          kept.set((await snapshots.create(made)).id, shown);
          return;
        }
        const [id, old] = random.pick([...kept]);
        await (kind === 'apply' ? snapshots.apply(id) : snapshots.remove(id));
        if (kind === 'apply') content.set(old);
        else kept.delete(id);
      });
    });
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  isOver = true;
  await Promise.all(workers);
  await view.close();
  await qemuImg(['check', '-q', '-f', 'qcow2', path]);
  assert.equal(Buffer.compare(await flat(path), content), 0, `seed ${SEED}`);
  for (const [id, old] of kept)
    assert.equal(Buffer.compare(await flat(path, ['-l', `snapshot.id=${id}`]), old), 0, id);
});
