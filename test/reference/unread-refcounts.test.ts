/** Refcounts that cannot be read once, when block status wants to know of preallocated metadata: nothing else fails with that. */
import assert from 'node:assert/strict';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { BlockError } from '../../src/base/block-error.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { Node } from '../../src/block/node.ts';
import { delayedFile } from '../support/delayed-file.ts';
import { MirrorStand } from '../support/mirror-stand.ts';
import { qemuImg, qemuImgJson, qemuIo } from '../support/qemu-img.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';

const MIB = 1 << 20;
const DISK_BYTES = 4 * MIB;
/** Specification: "refcount_table_offset". */
const REFCOUNT_TABLE_AT = 48;

/** Fails the first read of the refcount table from `arm` on. */
class TableFault {
  failures = 0;
  #table = -1;

  file(path: string) {
    return delayedFile(path, {
      before: async (operation, offset) => {
        if (operation !== 'read' || offset !== this.#table) return;
        this.#table = -1;
        this.failures++;
        throw new BlockError({ kind: 'io', message: 'the fault of this test' });
      },
    });
  }

  async arm(path: string): Promise<void> {
    await using image = await open(path);
    const { buffer } = await image.read(Buffer.alloc(8), 0, 8, REFCOUNT_TABLE_AT);
    this.#table = Number(buffer.readBigUInt64BE());
  }
}

const runsOf = async (node: Node) => {
  const runs = [];
  for (let at = 0; at < node.lengthBytes; ) {
    const run = await node.blockStatus(guestOffset(at), node.lengthBytes - at);
    runs.push({ start: at, length: run.lengthBytes, zero: run.zero, data: run.data });
    at += run.lengthBytes;
  }
  return runs;
};

/** As QEMU shows it. */
const mapOf = async (image: string): Promise<unknown> => {
  const map = await qemuImgJson('map', [image]);
  return (map as Awaited<ReturnType<typeof runsOf>>).map(({ start, length, zero, data }) => ({
    start,
    length,
    zero,
    data,
  }));
};

test('block status of preallocated metadata goes without holes of the host, as QEMU has it', async (t) => {
  const directory = await scratchDirectory(t);
  const path = join(directory, 'a.qcow2');
  const made = ['create', '-q', '-f', 'qcow2', '-o', 'preallocation=metadata'];
  await qemuImg([...made, path, String(DISK_BYTES)]);
  await qemuIo(path, ['write -P 1 0 64k']);
  const fault = new TableFault();
  const graph = await testGraph({ directory, file: fault.file(path) });
  const node = await graph.open({ path, format: 'qcow2', readOnly: true });
  await fault.arm(path);
  const seen = [await runsOf(node), await runsOf(node)];
  await graph.close(node);
  assert.equal(fault.failures, 1, 'it was read for block status');
  const failing = {
    driver: 'blkdebug',
    image: { driver: 'file', filename: path },
    'inject-error': [{ event: 'refblock_load', errno: 5 }],
  };
  const expected = await mapOf(`json:${JSON.stringify({ driver: 'qcow2', file: failing })}`);
  assert.deepEqual(seen, [expected, expected]);
  assert.notDeepEqual(await mapOf(path), expected, 'without a fault there are holes');
});

test('a mirror that ignores errors of its source comes to its end', async (t) => {
  const directory = await scratchDirectory(t);
  const fault = new TableFault();
  const formats = { sourceFormat: 'qcow2', targetFormat: 'raw', lengthBytes: DISK_BYTES };
  const file = fault.file(join(directory, 'source.qcow2'));
  const stand = await MirrorStand.open({ directory, file, ...formats });
  t.after(() => stand.abandon());
  await stand.view.write(guestOffset(0), Buffer.alloc(2 * MIB, 7));
  await fault.arm(stand.source);
  // All of it is dirty at once: nothing is looked at before it is copied.
  const job = await stand.mirror({ onSourceError: 'ignore', targetIsZero: false });
  await stand.readyOrEnded(job);
  assert.equal(job.status, 'ready');
  assert.equal(fault.failures, 1, 'it was read for block status');
  job.cancel({ force: false });
  await job.concluded;
  await stand.view.close();
  await qemuImg(['compare', stand.source, stand.target]);
});
