/** Changes of an add-cow header that fail, and cannot be put back: see test/unit/drivers/qcow2/owed-header.test.ts. */
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { type TestContext, test } from 'node:test';
import { guestOffset } from '../../../../src/base/units.ts';
import type { Node } from '../../../../src/block/node.ts';
import { decodeAddCow, writeAddCowOverRaw } from '../../../support/add-cow-file.ts';
import { FAULT, type HeaderFaultOptions } from '../../../support/header-fault.ts';
import { type HeaderFaultScene, openUnderFault } from '../../../support/header-fault-scene.ts';
import { journaledImage } from '../../../support/journaled-image.ts';

const CLUSTER = 4096;
const CLUSTERS = 8;
const DISK_BYTES = CLUSTERS * CLUSTER;
/** Of the header's fields: the backing file's name, compatible features. */
const BACKING_AT = 4;
const FEATURES_AT = 32;
const OWED = /cannot be put back/;
const OLD_LINK = { filename: 'base.raw', format: 'raw' };

const opened = async (
  t: TestContext,
  bits: readonly boolean[],
  first: HeaderFaultOptions['first'],
): Promise<HeaderFaultScene> => {
  // No checkpoint comes by itself, also of what was killed.
  t.mock.timers.enable({ apis: ['setTimeout'] });
  const place = await journaledImage(t, 'disk.add-cow');
  await writeAddCowOverRaw(place.path, CLUSTER, bits);
  return openUnderFault(place, { format: 'add-cow', headerBytes: CLUSTER, first });
};

const holds = async (node: Node, cluster: number, fill: number): Promise<void> => {
  const found = new Uint8Array(CLUSTER);
  await node.read(guestOffset(cluster * CLUSTER), found);
  assert.deepEqual(found, new Uint8Array(CLUSTER).fill(fill), `cluster ${cluster}`);
};

const write = (node: Node, cluster: number): Promise<void> =>
  node.write(guestOffset(cluster * CLUSTER), new Uint8Array(CLUSTER).fill(9));

const imageOf = async (path: string) => decodeAddCow(await readFile(path), DISK_BYTES);

const cannotFlush = async ({ node, path, errors }: HeaderFaultScene): Promise<void> => {
  const before = await readFile(path);
  for (let i = 0; i < 2; i++)
    await assert.rejects(node.flush(), { errno: 'EIO', path, message: OWED });
  assert.deepEqual(await readFile(path), before);
  assert.match(errors.join('\n'), OWED);
};

const linkFails = async (
  t: TestContext,
  first: HeaderFaultOptions['first'],
): Promise<HeaderFaultScene> => {
  const subject = await opened(t, Array(CLUSTERS).fill(false), first);
  const { node, fault } = subject;
  fault.arm(0);
  await assert.rejects(node.changeBacking(null), FAULT);
  assert.ok(fault.isMet, 'the header was written');
  await write(node, 3);
  return subject;
};

for (const first of ['reached', 'write'] as const) {
  test(`no flush is good until the old backing link is put back: ${first} fails`, async (t) => {
    const subject = await linkFails(t, first);
    const { node, graph, path, fault, takeOver } = subject;
    await cannotFlush(subject);
    fault.end();
    await node.flush();
    assert.deepEqual((await imageOf(path)).backing, { name: 'base.raw', format: 'raw' });
    await graph.close(node);
    const again = await takeOver();
    assert.deepEqual(again.node.driver.backingLink, OLD_LINK);
    await holds(again.node, 3, 9);
    await holds(again.node, 4, 1);
    await again.graph.close(again.node);
  });
}

test('a backing link that is owed when an engine is killed is put back by the next', async (t) => {
  const { path, errors, takeOver } = await linkFails(t, 'reached');
  assert.equal((await readFile(path)).readUInt32LE(BACKING_AT), 0, 'the file has the new link');
  const { node, graph } = await takeOver();
  assert.deepEqual(node.driver.backingLink, OLD_LINK);
  await holds(node, 3, 9);
  await holds(node, 4, 1);
  await graph.close(node);
  assert.ok(!errors.join('\n').includes('another program'));
});

test('a checkpoint that fails by itself says where and what to do', async (t) => {
  const { node, graph, fault, errors } = await linkFails(t, 'reached');
  t.mock.timers.tick(60_000);
  await assert.rejects(node.flush(), OWED);
  assert.match(
    errors.join('\n'),
    /a checkpoint failed: .*cannot be put back.* at offset 0x[0-9a-f]+: mend .*each flush tries it again/,
  );
  fault.end();
  await graph.close(node);
});

test('closing says so when a backing link cannot be put back', async (t) => {
  const { node, graph, errors, takeOver } = await linkFails(t, 'sync');
  await assert.rejects(graph.close(node), { message: OWED });
  assert.match(errors.join('\n'), /is closed, and .*cannot be put back/);
  const next = await takeOver();
  assert.deepEqual(next.node.driver.backingLink, OLD_LINK);
  await holds(next.node, 3, 9);
  await next.graph.close(next.node);
});

for (const first of ['sync', 'reached', 'write'] as const) {
  test(`an image that could not be said to be complete can be made empty: ${first} fails`, async (t) => {
    const bits = Array.from({ length: CLUSTERS }, (_, i) => i > 0);
    const subject = await opened(t, bits, first);
    const { node, graph, path, fault, takeOver } = subject;
    await write(node, 0);
    fault.arm(FEATURES_AT);
    await assert.rejects(node.flush(), FAULT);
    assert.ok(fault.isMet, 'the header was written');
    await cannotFlush(subject);
    await assert.rejects(node.makeEmpty(), { message: OWED });
    fault.end();
    if (first !== 'sync') {
      await node.makeEmpty();
      await graph.close(node);
    } else {
      await assert.rejects(graph.close(node), { message: OWED });
      const next = await takeOver();
      await next.node.makeEmpty();
      await next.graph.close(next.node);
    }
    const now = await imageOf(path);
    assert.ok(!now.isAllAllocated);
    assert.deepEqual(now.bits, Array(CLUSTERS).fill(false));
  });
}
