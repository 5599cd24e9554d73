/** When the end of an image file is not cut off; that it is, and what is left then, says test/qemu/free-tail.test.ts. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FreeTail } from '../../../../drivers/qcow2/free-tail.ts';
import { MetadataClusters } from '../../../../drivers/qcow2/metadata-clusters.ts';
import { silentLog } from '../../../../src/base/log.ts';
import { hostCluster } from '../../../../src/base/units.ts';

const CLUSTER = 512;

/** A file of 10 clusters of which the last was freed, by a checkpoint that is on disk; how long it is afterwards. */
const lengthAfter = async (isTableMoving: boolean): Promise<number> => {
  const file = {
    driver: {},
    lengthBytes: 10 * CLUSTER,
    resize: async (lengthBytes: number) => {
      file.lengthBytes = lengthBytes;
    },
  };
  const refcounts = {
    blockEntries: 64,
    residentBlock: () => ({}),
    read: (_: unknown, cluster: number) => (cluster < 9 ? 1 : 0),
  };
  const request = { discard: 'unmap', path: 'disk', log: silentLog };
  const metadata = new MetadataClusters();
  const state = { file, refcounts, request, metadata, clusterBytes: CLUSTER };
  const allocator = { isTableMoving, top: 0, paused: (change: () => Promise<void>) => change() };
  const tail = new FreeTail(state as never, allocator as never);
  tail.freed(hostCluster(9));
  tail.begin();
  await tail.end();
  return file.lengthBytes;
};

test('the file is not cut while a refcount table is moving to its end, where nothing counts it yet', async () => {
  assert.equal(await lengthAfter(false), 9 * CLUSTER);
  assert.equal(await lengthAfter(true), 10 * CLUSTER);
});
