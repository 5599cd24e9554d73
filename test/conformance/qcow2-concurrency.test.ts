/** Requests to different clusters of a qcow2 image never wait for each other; requests that meet are put in order. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BlockError } from '../../src/base/block-error.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { Node } from '../../src/block/node.ts';
import { delayedFile, type Interference } from '../support/delayed-file.ts';
import { qemuImg, qemuIo } from '../support/qemu-img.ts';
import { type Cleanup, scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';

const SPAN = 32 << 20;

const nothing: Interference['before'] = async () => undefined;

/** Two L2 tables of 64 KiB clusters: offsets below and from SPAN * 16 on lie in different ones. */
const opened = async (
  t: Cleanup,
  interference: Interference,
): Promise<{ node: Node; path: string; close: () => Promise<void> }> => {
  const directory = await scratchDirectory(t);
  const path = `${directory}/disk.qcow2`;
  await qemuImg(['create', '-q', '-f', 'qcow2', path, '1G']);
  await qemuIo(path, ['write -P 1 0 1M', `write -P 2 ${SPAN * 17} 1M`], ['-f', 'qcow2']);
  const graph = await testGraph({ directory, file: delayedFile(path, interference) });
  const node = await graph.open({ path, format: 'qcow2', readOnly: false });
  return { node, path, close: () => graph.close(node) };
};

const read = async (node: Node, offset: number): Promise<number | undefined> => {
  const bytes = new Uint8Array(512);
  await node.read(guestOffset(offset), bytes);
  return bytes[0];
};

test('a read does not wait for a metadata read of another cluster, and two misses share one', async (t) => {
  const interference: Interference = { before: nothing };
  const { node, close } = await opened(t, interference);
  let release = (): void => undefined;
  const held = new Promise<void>((resolve) => {
    release = resolve;
  });
  let loads = 0;
  // The first metadata read (4 KiB of an L2 table) is held; everything else goes through.
  interference.before = async (operation, _offset, length) => {
    if (operation === 'read' && length === 4096 && loads++ === 0) await held;
  };
  const first = read(node, 0);
  const second = read(node, 4096);
  assert.equal(await read(node, SPAN * 17), 2);
  assert.equal(loads, 2, 'the misses of one slice share one load');
  release();
  assert.deepEqual(await Promise.all([first, second]), [1, 1]);
  interference.before = nothing;
  await close();
});

test('an allocating write does not wait for one of another cluster', async (t) => {
  const interference: Interference = { before: nothing };
  const { node, close } = await opened(t, interference);
  await node.write(guestOffset(2 << 20), new Uint8Array(512).fill(3));
  let release = (): void => undefined;
  const held = new Promise<void>((resolve) => {
    release = resolve;
  });
  let writes = 0;
  interference.before = async (operation) => {
    if (operation === 'write' && writes++ === 0) await held;
  };
  const slow = node.write(guestOffset(3 << 20), new Uint8Array(512).fill(4));
  await node.write(guestOffset(4 << 20), new Uint8Array(512).fill(5));
  assert.equal(await read(node, 4 << 20), 5);
  release();
  await slow;
  assert.equal(await read(node, 3 << 20), 4);
  interference.before = nothing;
  await close();
});

test('two partial writes to one new cluster both stay', async (t) => {
  const interference: Interference = { before: nothing };
  const { node, close, path } = await opened(t, interference);
  interference.before = async (operation) => {
    if (operation === 'write') await new Promise((resolve) => setTimeout(resolve, 5));
  };
  const at = 5 << 20;
  await Promise.all(
    Array.from({ length: 16 }, (_, i) =>
      node.write(guestOffset(at + i * 4096 + 100), new Uint8Array(300).fill(10 + i)),
    ),
  );
  for (let i = 0; i < 16; i++) {
    assert.equal(await read(node, at + i * 4096 + 100), 10 + i);
    assert.equal(await read(node, at + i * 4096 + 500), 0);
  }
  interference.before = nothing;
  await close();
  await qemuImg(['check', '-q', '-f', 'qcow2', path]);
});

test('an allocating write that fails leaves the old content, and no cluster is lost', async (t) => {
  const interference: Interference = { before: nothing };
  const { node, close, path } = await opened(t, interference);
  interference.before = async (operation) => {
    if (operation === 'write')
      throw new BlockError({ kind: 'no-space', message: 'the disk is full' });
  };
  const write = (): Promise<void> =>
    node.write(guestOffset(6 << 20), new Uint8Array(100_000).fill(9));
  await assert.rejects(
    write(),
    (error: unknown) => error instanceof BlockError && error.errno === 'ENOSPC',
  );
  assert.equal(await read(node, 6 << 20), 0);
  interference.before = nothing;
  await write();
  assert.equal(await read(node, 6 << 20), 9);
  await close();
  await qemuImg(['check', '-q', '-f', 'qcow2', path]);
});

test('a failed checkpoint fails the flush, and the next one brings everything to the image', async (t) => {
  const interference: Interference = { before: nothing };
  const { node, close, path } = await opened(t, interference);
  await node.write(guestOffset(7 << 20), new Uint8Array(70_000).fill(7));
  await node.discard(guestOffset(0), 1 << 20);
  interference.before = async (operation) => {
    if (operation === 'write')
      throw new BlockError({ kind: 'no-space', message: 'the disk is full' });
  };
  await assert.rejects(
    node.flush(),
    (error: unknown) => error instanceof BlockError && error.errno === 'ENOSPC',
  );
  interference.before = nothing;
  await node.flush();
  assert.equal(await read(node, 7 << 20), 7);
  await close();
  await qemuImg(['check', '-q', '-f', 'qcow2', path]);
});

test('a freed cluster is not used again while somebody reads it', async (t) => {
  const interference: Interference = { before: nothing };
  const { node, close } = await opened(t, interference);
  await read(node, 0);
  let release = (): void => undefined;
  const held = new Promise<void>((resolve) => {
    release = resolve;
  });
  interference.before = async (operation, _offset, length) => {
    if (operation === 'read' && length === 512) await held;
  };
  const slow = read(node, 0);
  interference.before = nothing;
  await node.discard(guestOffset(0), 1 << 20);
  await node.flush();
  for (let i = 0; i < 32; i++) {
    await node.write(guestOffset((8 << 20) + i * 65_536), new Uint8Array(65_536).fill(200));
  }
  await node.flush();
  release();
  // It began before the discard: it sees what was there, and never the new owner's data.
  assert.equal(await slow, 1);
  await close();
});
