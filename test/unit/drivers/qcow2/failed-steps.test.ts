/** Operations on a whole image that fail at one of their steps: what is in memory goes on as the file has it. */
import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { BlockError } from '../../../../src/base/block-error.ts';
import { guestOffset } from '../../../../src/base/units.ts';
import { DirtyBitmap } from '../../../../src/block/dirty-bitmap.ts';
import { TrackedBitmap } from '../../../../src/block/dirty-tracking.ts';
import type { MappingChange } from '../../../../src/block/driver.ts';
import type { Graph } from '../../../../src/block/graph.ts';
import type { Node } from '../../../../src/block/node.ts';
import { delayedFile, type FileOperation } from '../../../support/delayed-file.ts';
import { qemuImg, qemuIo } from '../../../support/qemu-img.ts';
import { scratchDirectory } from '../../../support/scratch.ts';
import { testGraph } from '../../../support/test-graph.ts';

const CLUSTER = 4096;
const DISK_BYTES = 256 << 10;
const MESSAGE = 'the fault of this test';

interface Subject {
  readonly path: string;
  readonly directory: string;
  readonly graph: Graph;
  readonly node: Node;
  /** Operations of the file for which this is true fail from now on. */
  fails: (operation: FileOperation, offset: number) => boolean;
}

/** `snapshots`: what the image holds is kept by one. Without, nothing is mapped in it. */
const opened = async (
  t: TestContext,
  { snapshots = false }: { readonly snapshots?: boolean } = {},
): Promise<Subject> => {
  const directory = await scratchDirectory(t);
  const path = join(directory, 'disk.qcow2');
  const options = ['-f', 'qcow2', '-o', `cluster_size=${CLUSTER}`];
  await qemuImg(['create', '-q', ...options, path, String(DISK_BYTES)]);
  if (snapshots) {
    await qemuIo(path, ['write -P 1 0 8k'], ['-f', 'qcow2']);
    await qemuImg(['snapshot', '-c', 's', path]);
  }
  const state = { fails: (_operation: FileOperation, _offset: number): boolean => false };
  const file = delayedFile(path, {
    before: async (operation, offset) => {
      if (state.fails(operation, offset)) throw new BlockError({ kind: 'io', message: MESSAGE });
    },
  });
  const graph = await testGraph({ directory, file });
  const node = await graph.open({ path, format: 'qcow2', readOnly: false });
  return Object.assign(state, { path, directory, graph, node });
};

const refused = { message: new RegExp(MESSAGE) };

const sizeOf = async (path: string): Promise<number> =>
  Number((await readFile(path)).readBigUInt64BE(24));

/** Of the header, which a size and the place of a table are written to. */
const isHeader = (operation: FileOperation, offset: number): boolean =>
  operation === 'write' && offset < 104;

const STEPS: readonly {
  readonly step: string;
  readonly fails: () => (operation: FileOperation, offset: number) => boolean;
}[] = [
  { step: 'the checkpoint before the size is written', fails: () => (op) => op === 'flush' },
  { step: 'the write of the size', fails: () => isHeader },
  {
    step: 'the flush after the size was written',
    fails: () => {
      let isWritten = false;
      return (operation, offset) => {
        isWritten ||= isHeader(operation, offset) && offset === 24;
        return isWritten && operation === 'flush';
      };
    },
  },
];

for (const { step, fails } of STEPS) {
  for (const lengthBytes of [2 * DISK_BYTES, DISK_BYTES / 2]) {
    test(`a change of size to ${lengthBytes >> 10} KiB that fails leaves the old one, and can be tried again: ${step}`, async (t) => {
      const subject = await opened(t);
      const { node, graph, path } = subject;
      await node.write(guestOffset(100_000), new Uint8Array(1000).fill(7));
      subject.fails = fails();
      await assert.rejects(node.resize(lengthBytes), refused);
      subject.fails = () => false;
      assert.equal(node.lengthBytes, DISK_BYTES);
      assert.equal(await sizeOf(path), DISK_BYTES);
      await assert.rejects(node.write(guestOffset(DISK_BYTES), new Uint8Array(512)));
      await node.resize(lengthBytes);
      assert.equal(await sizeOf(path), lengthBytes);
      await graph.close(node);
      await qemuImg(['check', path]);
    });
  }
}

test('a backing link that is written, and cannot be synced, is the old one again', async (t) => {
  const subject = await opened(t);
  const { node, graph, path, directory } = subject;
  const link = { filename: 'base.raw', format: 'raw' };
  await writeFile(join(directory, link.filename), new Uint8Array(DISK_BYTES).fill(3));
  const before = await readFile(path);
  let isWritten = false;
  subject.fails = (operation, offset) => {
    isWritten ||= operation === 'write' && offset === 0;
    return isWritten && operation === 'flush';
  };
  await assert.rejects(node.changeBacking(link), refused);
  assert.ok(isWritten, 'the header was written');
  const fields = (file: Buffer): Buffer => file.subarray(0, 112);
  assert.deepEqual(fields(await readFile(path)), fields(before));
  subject.fails = () => false;
  await node.changeBacking(link);
  await graph.close(node);
  const again = await (await testGraph({ directory })).open({
    path,
    format: 'qcow2',
    readOnly: true,
  });
  assert.deepEqual(again.driver.backingLink, link);
  await again.close();
});

test('what a guest writes after its L1 table could not be moved is there when the image is opened again', async (t) => {
  const subject = await opened(t);
  const { node, graph, path, directory } = subject;
  let isWritten = false;
  subject.fails = (operation, offset) => {
    isWritten ||= operation === 'write' && offset === 36;
    return isWritten && operation === 'flush';
  };
  await assert.rejects(node.resize(2 ** 33), refused);
  assert.ok(isWritten, 'the header was written');
  subject.fails = () => false;
  const bytes = new Uint8Array(CLUSTER).fill(9);
  await node.write(guestOffset(DISK_BYTES - CLUSTER), bytes);
  await graph.close(node);
  await qemuImg(['check', path]);
  const again = await (await testGraph({ directory })).open({
    path,
    format: 'qcow2',
    readOnly: true,
  });
  const found = new Uint8Array(CLUSTER);
  await again.read(guestOffset(DISK_BYTES - CLUSTER), found);
  assert.deepEqual(found, bytes);
  await again.close();
});

test('a snapshot that is applied, and cannot be synced, is what everybody is told of', async (t) => {
  const subject = await opened(t, { snapshots: true });
  const { node, graph } = subject;
  const bitmap = new TrackedBitmap({
    name: 'changes',
    content: new DirtyBitmap({ lengthBytes: DISK_BYTES, granularityBytes: 512 }),
    recording: true,
    persistent: false,
  });
  await node.write(guestOffset(0), new Uint8Array(CLUSTER).fill(2));
  await node.dirtyBitmaps.add(bitmap);
  const told: MappingChange[] = [];
  node.mappingListeners.add((change) => told.push(change));
  let isWritten = false;
  subject.fails = (operation, offset) => {
    isWritten ||= operation === 'write' && offset === 24;
    return isWritten && operation === 'flush';
  };
  await assert.rejects(
    node.withSnapshots('apply', (snapshots) => snapshots.apply('1')),
    refused,
  );
  subject.fails = () => false;
  const found = new Uint8Array(1);
  await node.read(guestOffset(0), found);
  assert.equal(found[0], 1, 'the content is that of the snapshot');
  assert.ok(bitmap.content.isDirty(0), 'the bitmap says so');
  assert.ok(told.some(({ start, lengthBytes }) => start === 0 && lengthBytes >= DISK_BYTES));
  await graph.close(node);
});

test('a host without room for a packed cluster is asked again for the next one', async (t) => {
  const subject = await opened(t);
  const { node, graph, path } = subject;
  const bytes = new Uint8Array(CLUSTER).fill(5);
  subject.fails = (operation) => operation === 'write';
  await assert.rejects(node.writeCompressed(guestOffset(4 * CLUSTER), bytes), refused);
  subject.fails = () => false;
  await node.writeCompressed(guestOffset(5 * CLUSTER), bytes);
  await node.writeCompressed(guestOffset(6 * CLUSTER), bytes);
  await graph.close(node);
  await qemuImg(['check', path]);
});
