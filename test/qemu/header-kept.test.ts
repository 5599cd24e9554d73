import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import { guestOffset } from '../../src/base/units.ts';
import type { Node } from '../../src/block/node.ts';
import { assertClean, qemuImg, qemuImgJson } from '../support/qemu-img.ts';
import { type Cleanup, scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';
import { vdiskfs } from '../support/vdiskfs.ts';

const UNKNOWN = [
  { type: 0x1234_5678, content: Buffer.from('kept byte by byte, whatever its length') },
  { type: 0x7777_7777, content: Buffer.alloc(0) },
  { type: 0x1234_5678, content: Buffer.from([1, 2, 3]) },
] as const;

interface Extension {
  readonly type: number;
  readonly content: Buffer;
}

const extensionsOf = (image: Buffer): Extension[] => {
  const found: Extension[] = [];
  for (let at = image.readUInt32BE(100); image.readUInt32BE(at) !== 0; ) {
    const [type, length] = [image.readUInt32BE(at), image.readUInt32BE(at + 4)];
    found.push({ type, content: image.subarray(at + 8, at + 8 + length) });
    at += 8 + Math.ceil(length / 8) * 8;
  }
  return found;
};

const unknownOf = (image: Buffer): Extension[] =>
  extensionsOf(image).filter(({ type }) => type === UNKNOWN[0].type || type === UNKNOWN[1].type);

/** An image with extensions and feature bits that nobody knows. */
const made = async (t: Cleanup): Promise<{ directory: string; path: string }> => {
  const directory = await scratchDirectory(t);
  const path = `${directory}/disk.qcow2`;
  await qemuImg(['create', '-q', '-f', 'qcow2', path, '1M']);
  const image = await readFile(path);
  const all = [
    ...extensionsOf(image).map((e) => ({ ...e, content: Buffer.from(e.content) })),
    ...UNKNOWN,
  ];
  let at = image.readUInt32BE(100);
  for (const { type, content } of all) {
    image.writeUInt32BE(type, at);
    image.writeUInt32BE(content.length, at + 4);
    image.fill(0, at + 8, at + 8 + Math.ceil(content.length / 8) * 8);
    content.copy(image, at + 8);
    at += 8 + Math.ceil(content.length / 8) * 8;
  }
  image.fill(0, at, at + 8);
  image.writeBigUInt64BE(1n << 40n, 80);
  image.writeBigUInt64BE((1n << 50n) | (1n << 7n), 88);
  await writeFile(path, image);
  await assertClean(path);
  return { directory, path };
};

const change = async (
  place: { directory: string; path: string },
  use: (node: Node) => Promise<void>,
): Promise<void> => {
  const graph = await testGraph({ directory: place.directory });
  const node = await graph.open({ path: place.path, format: 'qcow2', readOnly: false });
  await use(node);
  await graph.close(node);
};

const assertKept = async (path: string): Promise<void> => {
  const image = await readFile(path);
  assert.deepEqual(unknownOf(image), UNKNOWN, 'extensions');
  assert.equal(image.readBigUInt64BE(80), 1n << 40n, 'compatible bits');
};

test('unknown extensions and compatible bits stay through writes, resizes and new backing names', async (t) => {
  const place = await made(t);
  const { directory, path } = place;
  await change(place, (node) => node.write(guestOffset(0), new Uint8Array(100_000).fill(1)));
  await assertKept(path);
  await change(place, (node) => node.resize(3 << 20));
  await assertKept(path);
  await qemuImg(['create', '-q', '-f', 'raw', `${directory}/base.img`, '3M']);
  for (const name of ['base.img', `${directory}/base.img`, '']) {
    const backing = name === '' ? ['-b', ''] : ['-b', name, '-F', 'raw'];
    const done = await vdiskfs(['rebase', '-u', ...backing, path]);
    assert.equal(done.status, 0, done.stderr);
    await assertKept(path);
    const info = (await qemuImgJson('info', [path])) as { 'backing-filename'?: string };
    assert.equal(info['backing-filename'] ?? '', name);
  }
  const done = await vdiskfs(['check', '-r', 'all', path]);
  assert.equal(done.status, 0, done.stderr);
  await assertKept(path);
  await assertClean(path);
});

test('unknown autoclear bits are cleared by the first write, and not by opening', async (t) => {
  const place = await made(t);
  const before = (await readFile(place.path)).readBigUInt64BE(88);
  await change(place, async () => undefined);
  assert.equal((await readFile(place.path)).readBigUInt64BE(88), before);
  await change(place, (node) => node.write(guestOffset(0), new Uint8Array(1).fill(1)));
  assert.equal((await readFile(place.path)).readBigUInt64BE(88), 0n);
  await assertKept(place.path);
});
