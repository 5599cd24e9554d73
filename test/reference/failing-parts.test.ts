/**
 * A request that lies in several places, the first of which fails while the mapping of the next is still being read: it fails as
 * a whole, and nothing of it is an unhandled rejection, of which an engine would die.
 */
import assert from 'node:assert/strict';
import { truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { BlockError } from '../../src/base/block-error.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { Node } from '../../src/block/node.ts';
import { writeAddCow } from '../support/add-cow-file.ts';
import { delayedFile } from '../support/delayed-file.ts';
import { qemuImg, qemuIo } from '../support/qemu-img.ts';
import { type Cleanup, scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';

/** Longer than metadata is read at once. */
const DATA_BYTES = 8 << 10;
const TABLE_MS = 30;

/** An image whose tables are read slowly, and whose data is neither read nor written. */
const openFailing = async (
  t: Cleanup,
  directory: string,
  image: { readonly path: string; readonly format: string },
): Promise<Node> => {
  const file = delayedFile(null, {
    before: async (operation, _offset, lengthBytes) => {
      if (operation !== 'read' && operation !== 'write') return;
      if (lengthBytes < DATA_BYTES) await sleep(TABLE_MS);
      else throw new BlockError({ kind: 'io', message: 'the fault of this test' });
    },
  });
  const graph = await testGraph({ directory, file });
  const node = await graph.open({ ...image, readOnly: false });
  t.after(() => graph.close(node).catch(() => undefined));
  return node;
};

test('qcow2: reads and writes over two L2 tables', async (t) => {
  const directory = await scratchDirectory(t);
  const path = join(directory, 'disk.qcow2');
  // A table of 64 entries stands for 32 KiB.
  await qemuImg(['create', '-q', '-f', 'qcow2', '-o', 'cluster_size=512', path, '64k']);
  await qemuIo(path, ['write -P 1 0 64k'], ['-f', 'qcow2']);
  const bytes = new Uint8Array(32 << 10);
  const across = guestOffset(16 << 10);
  const reader = await openFailing(t, directory, { path, format: 'qcow2' });
  await assert.rejects(reader.read(across, bytes), /the fault of this test/);
  await reader.read(guestOffset(60 << 10), new Uint8Array(512));
  const writer = await openFailing(t, directory, { path, format: 'qcow2' });
  await assert.rejects(writer.write(across, bytes), /the fault of this test/);
});

test('add-cow: reads and writes over two pieces of the bitmap', async (t) => {
  const directory = await scratchDirectory(t);
  const path = join(directory, 'disk.add-cow');
  const clusterBytes = 4096;
  // A piece of the bitmap of 4 KiB stands for 128 MiB.
  const piece = 128 << 20;
  await writeFile(join(directory, 'disk.raw'), '');
  await truncate(join(directory, 'disk.raw'), 2 * piece);
  await writeAddCow(path, {
    clusterBytes,
    backing: null,
    image: { name: 'disk.raw', format: 'raw' },
    isAllAllocated: false,
    bits: new Array((2 * piece) / clusterBytes).fill(true),
  });
  const bytes = new Uint8Array(64 << 10);
  const across = guestOffset(piece - bytes.length / 2);
  const reader = await openFailing(t, directory, { path, format: 'add-cow' });
  await assert.rejects(reader.read(across, bytes), /the fault of this test/);
  const writer = await openFailing(t, directory, { path, format: 'add-cow' });
  await assert.rejects(writer.write(across, bytes), /the fault of this test/);
});
