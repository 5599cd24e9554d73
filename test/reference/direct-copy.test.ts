/** Copies that the host makes from file to file: streams and mirrors of disks in which some of it can be copied so. */
import assert from 'node:assert/strict';
import { truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { guestOffset } from '../../src/base/units.ts';
import { notCopied } from '../../src/block/host-range.ts';
import type { Node } from '../../src/block/node.ts';
import { DirectCopy } from '../../src/job/direct-copy.ts';
import { MirrorStand } from '../support/mirror-stand.ts';
import { eventually } from '../support/mounted.ts';
import { qemuImg, qemuIo } from '../support/qemu-img.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';

const MIB = 1 << 20;
const DISK_BYTES = 24 * MIB;

/** Long runs, holes, clusters in two places, zeros in front of data, and data in front of zeros. */
const CONTENT = [
  'write -P 1 0 6M',
  'write -P 2 9M 64k',
  'write -P 3 8M 512k',
  'write -P 0 12M 1M',
  'write -P 4 13M 3M',
  'write -P 5 20M 70k',
  'write -P 6 23M 1M',
];

const bytesOf = async (node: Node): Promise<Buffer> => {
  const bytes = Buffer.alloc(DISK_BYTES);
  await node.read(guestOffset(0), bytes);
  return bytes;
};

for (const source of ['raw', 'qcow2']) {
  for (const target of ['raw', 'qcow2']) {
    test(`a mirror from ${source} to ${target} has all of it, some copied by the host`, async (t) => {
      const directory = await scratchDirectory(t);
      const stand = await MirrorStand.open({
        directory,
        sourceFormat: source,
        targetFormat: target,
        lengthBytes: DISK_BYTES,
      });
      t.after(async () => stand.abandon());
      await stand.view.close();
      await qemuIo(stand.source, CONTENT, ['-f', source]);
      await stand.view.open();
      const expected = await bytesOf(stand.root);
      const job = await stand.mirror();
      await stand.readyOrEnded(job);
      assert.equal(job.status, 'ready');
      const written = stand.targetNode?.file?.statistics.writtenBytes ?? 0;
      assert.ok(written >= 6 * MIB, 'what was copied is counted as written');
      job.complete();
      await eventually('the job has ended', async () => (job.status as string) === 'concluded');
      assert.equal(job.error, null);
      assert.equal(stand.root.path, stand.target);
      assert.ok((await bytesOf(stand.root)).equals(expected));
      await stand.view.close();
      await qemuImg(['compare', stand.source, stand.target]);
    });
  }
}

test('a copy by the host goes where a layer has nothing, and leaves what it has', async (t) => {
  const directory = await scratchDirectory(t);
  const [base, top] = ['base', 'top'].map((name) => join(directory, name));
  assert.ok(base !== undefined && top !== undefined);
  await qemuImg(['create', '-q', '-f', 'qcow2', base, String(DISK_BYTES)]);
  await qemuIo(base, CONTENT, ['-f', 'qcow2']);
  await qemuImg(['create', '-q', '-f', 'qcow2', '-b', base, '-F', 'qcow2', top]);
  await qemuIo(top, ['write -P 9 1M 100k'], ['-f', 'qcow2']);
  const graph = await testGraph({ directory });
  const root = await graph.open({ path: top, format: 'qcow2', readOnly: false });
  const { backing } = root;
  assert.ok(backing !== null);
  const expected = await bytesOf(root);
  const direct = new DirectCopy('populate', backing, root);
  assert.equal(await direct.copy(backing, root, { start: 0, lengthBytes: 4 * MIB }), true);
  assert.ok((await bytesOf(root)).equals(expected), 'what the guest has written stays');
  const mapping = await root.mapping(guestOffset(2 * MIB), MIB);
  assert.equal(mapping.kind, 'data');
  assert.equal(direct.reachBytes(6 * MIB), 2 * MIB);
  assert.equal(
    await direct.copy(backing, root, { start: 8 * MIB, lengthBytes: 4 * MIB }),
    false,
    'it lies in two places',
  );
  assert.equal(direct.reachBytes(9 * MIB), 0);
  assert.ok((await bytesOf(root)).equals(expected));
  await graph.close(root);
});

test('a host that refuses one range is asked for the next, one that refuses all of them is not', async (t) => {
  const directory = await scratchDirectory(t);
  const [from, to] = ['from.raw', 'to.raw'].map((name) => join(directory, name));
  assert.ok(from !== undefined && to !== undefined);
  await writeFile(from, Buffer.alloc(DISK_BYTES, 7));
  await writeFile(to, '');
  await truncate(to, DISK_BYTES);
  const graph = await testGraph({ directory });
  const source = await graph.open({ path: from, format: 'raw', readOnly: true });
  const target = await graph.open({ path: to, format: 'raw', readOnly: false });
  let refuses = (_at: number): boolean => false;
  let asked = 0;
  const { driver } = target;
  const copyIn = driver.copyIn?.bind(driver);
  assert.ok(copyIn !== undefined);
  driver.copyIn = async (offset, range, how) => {
    asked++;
    if (refuses(offset)) throw notCopied();
    return copyIn(offset, range, how);
  };
  const copyAll = async (): Promise<boolean[]> => {
    asked = 0;
    const direct = new DirectCopy('write', source, target);
    const outcomes: boolean[] = [];
    for (let start = 0; start < DISK_BYTES; start += 4 * MIB)
      outcomes.push(await direct.copy(source, target, { start, lengthBytes: 4 * MIB }));
    return outcomes;
  };
  refuses = (at) => at === 4 * MIB || at === 16 * MIB;
  assert.deepEqual(await copyAll(), [true, false, true, true, false, true]);
  refuses = () => true;
  assert.deepEqual(await copyAll(), [false, false, false, false, false, false]);
  assert.equal(asked, 4);
  await graph.close(source);
  await graph.close(target);
});
