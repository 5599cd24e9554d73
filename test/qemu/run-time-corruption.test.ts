import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import { BlockError } from '../../src/base/block-error.ts';
import { guestOffset } from '../../src/base/units.ts';
import { qemuImg, qemuImgJson, qemuIo } from '../support/qemu-img.ts';
import { type Cleanup, scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';

const CLUSTER_BYTES = 65_536;

/** Two guest clusters of data; the file's last clusters are its L2 table and those two. */
const made = async (t: Cleanup): Promise<{ directory: string; path: string; l2: number }> => {
  const directory = await scratchDirectory(t);
  const path = `${directory}/disk.qcow2`;
  await qemuImg(['create', '-q', '-f', 'qcow2', path, '1M']);
  await qemuIo(path, ['write -P 7 0 64k', 'write -P 8 64k 64k']);
  const image = await readFile(path);
  const l1 = Number(image.readBigUInt64BE(40));
  return { directory, path, l2: Number(image.readBigUInt64BE(l1) & 0xff_ffff_ffff_fe00n) };
};

const isEio = (message: RegExp) => (error: unknown) =>
  error instanceof BlockError && error.errno === 'EIO' && message.test(error.describe());

const isMarked = async (path: string): Promise<boolean> => {
  const info = (await qemuImgJson('info', [path])) as {
    'format-specific': { data: { corrupt: boolean } };
  };
  return info['format-specific'].data.corrupt;
};

const DAMAGES: readonly {
  readonly what: string;
  readonly damage: (image: Buffer, l2: number) => void;
  readonly at: number;
  readonly message: RegExp;
}[] = [
  {
    what: 'an L2 entry that points to the refcount table',
    damage: (image, l2) => image.writeBigUInt64BE((1n << 63n) | 0x1_0000n, l2 + 8),
    at: CLUSTER_BYTES,
    message: /points to metadata/,
  },
  {
    what: 'an L2 entry that points to its own table',
    damage: (image, l2) => image.writeBigUInt64BE((1n << 63n) | BigInt(l2), l2 + 8),
    at: CLUSTER_BYTES,
    message: /points to metadata/,
  },
  {
    what: 'a refcount of 0 for the refcount table',
    damage: (image) => {
      const table = Number(image.readBigUInt64BE(48));
      image.writeUInt16BE(0, Number(image.readBigUInt64BE(table)) + 2);
    },
    at: 5 * CLUSTER_BYTES,
    message: /holds metadata/,
  },
];

for (const { what, damage, at, message } of DAMAGES) {
  test(`a write that meets ${what} fails, marks the image durably, and reading goes on`, async (t) => {
    const { directory, path, l2 } = await made(t);
    const image = await readFile(path);
    damage(image, l2);
    await writeFile(path, image);
    const graph = await testGraph({ directory });
    const node = await graph.open({ path, format: 'qcow2', readOnly: false });
    assert.equal(await isMarked(path), false);
    const bytes = new Uint8Array(512).fill(9);
    await assert.rejects(node.write(guestOffset(at), bytes), isEio(message));
    assert.equal(await isMarked(path), true, 'before the write was answered');
    await assert.rejects(node.write(guestOffset(0), bytes), isEio(/found corrupt/));
    await assert.rejects(node.discard(guestOffset(0), CLUSTER_BYTES), isEio(/found corrupt/));
    await node.read(guestOffset(0), bytes);
    assert.deepEqual(bytes, new Uint8Array(512).fill(7));
    const m = await node.mapping(guestOffset(0), 512);
    assert.ok(m.kind === 'data' && !m.inPlace, 'workers do not write in place any more');
    assert.equal(node.driver.isMarkedCorrupt, true);
    await graph.close(node);
    const after = await readFile(path);
    assert.equal(after.readUInt32BE(76), 2);
    after.writeUInt32BE(0, 76);
    assert.deepEqual(after.subarray(0, image.length), image, 'nothing else was written');
    const again = graph.open({ path, format: 'qcow2', readOnly: false });
    await assert.rejects(again, (e: unknown) => e instanceof BlockError && e.errno === 'EROFS');
    const reader = await graph.open({ path, format: 'qcow2', readOnly: true });
    await reader.read(guestOffset(0), bytes);
    await graph.close(reader);
  });
}
