/**
 * Changes of an image's snapshots that fail at one of their steps: what has not begun leaves nothing behind, and what it leaves is
 * repaired by whoever opens the image next, who has all that guests were answered meanwhile.
 */
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { type TestContext, test } from 'node:test';
import { BlockError } from '../../../../src/base/block-error.ts';
import { guestOffset } from '../../../../src/base/units.ts';
import type { Graph } from '../../../../src/block/graph.ts';
import type { Node } from '../../../../src/block/node.ts';
import { delayedFile, type FileOperation } from '../../../support/delayed-file.ts';
import { journaledImage } from '../../../support/journaled-image.ts';
import { qemuImg, qemuIo } from '../../../support/qemu-img.ts';
import { testGraph } from '../../../support/test-graph.ts';

const CLUSTER = 4096;
const DISK_BYTES = 1 << 20;
const FAULT = { message: /the fault of this test/ };
const SNAPSHOTS_AT = 60;
const SIZE_AT = 24;

type Fault = (operation: FileOperation, offset: number) => boolean;

interface Subject {
  readonly path: string;
  readonly graph: Graph;
  readonly node: Node;
  /** The first operation of the file for which this is true fails, and no other. */
  failOnce: (fault: Fault) => void;
  /** It has failed. */
  readonly isMet: () => boolean;
  /** Another engine's, after this one was killed. */
  readonly takeOver: () => Promise<{ readonly graph: Graph; readonly node: Node }>;
}

interface Image {
  readonly compat?: '0.10' | '1.1';
  /** Guest bytes that are packed in the beginning, and rewritten after the snapshot was made. */
  readonly packedBytes?: number;
}

/** A snapshot keeps 1s; the first 8 KiB have become 2s. */
const opened = async (t: TestContext, image: Image = {}): Promise<Subject> => {
  // No checkpoint comes by itself, also of what was killed.
  t.mock.timers.enable({ apis: ['setTimeout'] });
  const { compat = '1.1', packedBytes = 0 } = image;
  const { directory, path, journals } = await journaledImage(t, 'disk.qcow2');
  const options = ['-f', 'qcow2', '-o', `cluster_size=${CLUSTER},compat=${compat}`];
  await qemuImg(['create', '-q', ...options, path, String(DISK_BYTES)]);
  const packed = Array.from(
    { length: packedBytes / CLUSTER },
    (_, i) => 16 * CLUSTER + i * CLUSTER,
  );
  await qemuIo(
    path,
    ['write -P 1 0 64k', ...packed.map((at) => `write -c -P 4 ${at} ${CLUSTER}`)],
    ['-f', 'qcow2'],
  );
  await qemuImg(['snapshot', '-c', 's', path]);
  await qemuIo(
    path,
    ['write -P 2 0 8k', ...packed.map((at) => `write -P 5 ${at} ${CLUSTER}`)],
    ['-f', 'qcow2'],
  );
  let fails: Fault | null = null;
  let isMet = false;
  const file = delayedFile(path, {
    before: async (operation, offset) => {
      if (fails?.(operation, offset) !== true) return;
      fails = null;
      isMet = true;
      throw new BlockError({ kind: 'io', message: 'the fault of this test' });
    },
  });
  const how = { directory, journalDirectory: journals };
  const graph = await testGraph({ ...how, file });
  const node = await graph.open({ path, format: 'qcow2', readOnly: false });
  return {
    path,
    graph,
    node,
    failOnce: (fault) => {
      fails = fault;
      isMet = false;
    },
    isMet: () => isMet,
    takeOver: async () => {
      const next = await testGraph(how);
      return { graph: next, node: await next.open({ path, format: 'qcow2', readOnly: false }) };
    },
  };
};

const create = async (node: Node): Promise<void> => {
  await node.withSnapshots('create', (snapshots) =>
    snapshots.create({ name: 'later', dateSeconds: 0, dateNanoseconds: 0 }),
  );
};

const apply = (node: Node): Promise<void> =>
  node.withSnapshots('apply', (snapshots) => snapshots.apply('1'));

const remove = (node: Node): Promise<void> =>
  node.withSnapshots('remove', (snapshots) => snapshots.remove('1'));

const CHANGES: readonly {
  readonly what: string;
  /** Of the header. */
  readonly at: number;
  readonly run: (node: Node) => Promise<void>;
}[] = [
  { what: 'made', at: SNAPSHOTS_AT, run: create },
  { what: 'applied', at: SIZE_AT, run: apply },
  { what: 'deleted', at: SNAPSHOTS_AT, run: remove },
];

const isDirty = async (path: string): Promise<boolean> => {
  const header = await readFile(path);
  return header.readUInt32BE(4) === 3 && (header.readUInt8(79) & 1) !== 0;
};

const fill = (byte: number, lengthBytes = CLUSTER): Uint8Array =>
  new Uint8Array(lengthBytes).fill(byte);

const holds = async (node: Node, at: number, byte: number): Promise<void> => {
  const found = new Uint8Array(CLUSTER);
  await node.read(guestOffset(at), found);
  assert.deepEqual(found, fill(byte), `at ${at}`);
};

/** In a cluster of a snapshot, and in one that was never written. */
const WRITTEN = [3 * CLUSTER, 200 * CLUSTER];

/** Once the header was written there. */
const afterHeader = (at: number, fault: Fault): Fault => {
  let isWritten = false;
  return (operation, offset) => {
    if (isWritten) return fault(operation, offset);
    isWritten = operation === 'write' && offset === at;
    return false;
  };
};

/** The how-manieth sync, from 1. */
const sync = (which: number): Fault => {
  let left = which;
  return (operation) => operation === 'flush' && --left === 0;
};

for (const { what, at, run } of CHANGES) {
  for (const compat of ['1.1', '0.10'] as const) {
    test(`a snapshot that is not ${what} because the header was not written leaves nothing behind: compat=${compat}`, async (t) => {
      const { path, graph, node, failOnce, isMet } = await opened(t, { compat });
      failOnce((operation, offset) => operation === 'write' && offset === at);
      await assert.rejects(run(node), FAULT);
      assert.ok(isMet());
      assert.equal(await isDirty(path), false);
      await qemuImg(['check', '-U', path]);
      for (const place of WRITTEN) await node.write(guestOffset(place), fill(9));
      await graph.close(node);
      await qemuImg(['check', path]);
      await qemuIo(
        path,
        WRITTEN.map((place) => `read -P 9 ${place} ${CLUSTER}`),
      );
    });
  }

  test(`what guests were answered after a snapshot was not ${what} is there when the engine is killed then`, async (t) => {
    const { path, node, failOnce, takeOver } = await opened(t);
    failOnce((operation, offset) => operation === 'write' && offset === at);
    await assert.rejects(run(node), FAULT);
    for (const place of WRITTEN) await node.write(guestOffset(place), fill(9));
    const next = await takeOver();
    for (const place of WRITTEN) await holds(next.node, place, 9);
    await next.graph.close(next.node);
    await qemuImg(['check', path]);
  });

  test(`what guests were answered after refcounts could not be mended of a snapshot that is ${what} is there when the engine is killed then`, async (t) => {
    const { path, node, failOnce, isMet, takeOver } = await opened(t);
    failOnce(afterHeader(at, sync(2)));
    await run(node);
    assert.ok(isMet());
    assert.equal(await isDirty(path), true);
    for (const place of WRITTEN) await node.write(guestOffset(place), fill(9));
    const next = await takeOver();
    for (const place of WRITTEN) await holds(next.node, place, 9);
    await next.graph.close(next.node);
    assert.equal(await isDirty(path), false);
    await qemuImg(['check', path]);
  });
}

test('what guests were answered is there although what a snapshot gave back is still counted on disk', async (t) => {
  // Several in each host cluster: it is counted as often.
  const { path, node, failOnce, isMet, takeOver } = await opened(t, { packedBytes: 64 * CLUSTER });
  failOnce(afterHeader(SNAPSHOTS_AT, (operation) => operation === 'write'));
  await remove(node);
  assert.ok(isMet());
  // They take what was given back.
  for (let i = 0; i < 32; i++) await node.write(guestOffset(DISK_BYTES / 2 + i * CLUSTER), fill(9));
  const next = await takeOver();
  for (let i = 0; i < 32; i++) await holds(next.node, DISK_BYTES / 2 + i * CLUSTER, 9);
  await next.graph.close(next.node);
  await qemuImg(['check', path]);
});

test('an image that a failure has left to its next opening to repair stays marked, whatever succeeds then', async (t) => {
  const { path, graph, node, failOnce, takeOver } = await opened(t);
  failOnce(afterHeader(SNAPSHOTS_AT, sync(2)));
  await remove(node);
  assert.equal(await isDirty(path), true);
  await create(node);
  failOnce((operation, offset) => operation === 'write' && offset === SNAPSHOTS_AT);
  await assert.rejects(create(node), FAULT);
  await graph.close(node);
  assert.equal(await isDirty(path), true);
  const next = await takeOver();
  await next.graph.close(next.node);
  assert.equal(await isDirty(path), false);
  await qemuImg(['check', path]);
});

test('an image that a failure has left to its next opening to repair stays marked when the next change does not begin', async (t) => {
  const { path, graph, node, failOnce } = await opened(t);
  failOnce(afterHeader(SNAPSHOTS_AT, sync(2)));
  await remove(node);
  await node.write(guestOffset(9 * CLUSTER), fill(4));
  failOnce((operation) => operation === 'flush');
  await assert.rejects(create(node), FAULT);
  assert.equal(await isDirty(path), true);
  await graph.close(node);
});
