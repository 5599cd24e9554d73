/**
 * Images that are marked dirty and of which an engine that was killed has left a restart journal: what it has answered is there, then
 * the image is repaired, whatever ends that in the middle.
 */
import assert from 'node:assert/strict';
import { readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { BlockError } from '../../../../src/base/block-error.ts';
import { guestOffset } from '../../../../src/base/units.ts';
import type { DriverDescriptor } from '../../../../src/block/driver.ts';
import type { Graph } from '../../../../src/block/graph.ts';
import type { Node } from '../../../../src/block/node.ts';
import { delayedFile } from '../../../support/delayed-file.ts';
import { patch } from '../../../support/host-files.ts';
import { journaledImage } from '../../../support/journaled-image.ts';
import { qemuImg, qemuIo } from '../../../support/qemu-img.ts';
import { testGraph } from '../../../support/test-graph.ts';

const CLUSTER = 4096;
const INCOMPATIBLE_AT = 79;
const PLACES = [3, 100, 200].map((cluster) => cluster * CLUSTER);

interface Opened {
  readonly graph: Graph;
  readonly node: Node;
}

interface Left {
  readonly path: string;
  /** For qemu-img. */
  readonly check: readonly string[];
  readonly journals: string;
  /** `file`: the protocol below. */
  readonly takeOver: (file?: DriverDescriptor) => Promise<Opened>;
}

/** One byte of the file becomes another. */
const alter = async (path: string, at: number, change: (byte: number) => number): Promise<void> =>
  patch(path, at, [change((await readFile(path)).readUInt8(at))]);

/** A cluster that is nobody else's looks shared. */
const clearCopied = async (path: string, cluster: number): Promise<void> => {
  const image = await readFile(path);
  const l1 = Number(image.readBigUInt64BE(40));
  const l2 = Number(image.readBigUInt64BE(l1) & ((1n << 56n) - 1n));
  await alter(path, l2 + 8 * cluster, (byte) => byte & 0x7f);
};

/** Written by an engine that was killed before its first checkpoint, and marked dirty. */
const left = async (t: TestContext, options: readonly string[] = []): Promise<Left> => {
  // No checkpoint comes by itself, also of what was killed.
  t.mock.timers.enable({ apis: ['setTimeout'] });
  const { directory, path, journals } = await journaledImage(t, 'disk.qcow2');
  const key = join(directory, 'key');
  await writeFile(key, 'a passphrase');
  const layout = [`cluster_size=${CLUSTER}`, ...options].join(',');
  const secret = ['--object', `secret,id=k,file=${key}`];
  const data = layout.replace('data_file=', `data_file=${directory}/`);
  await qemuImg(['create', '-q', ...secret, '-f', 'qcow2', '-o', data, path, '1M']);
  const takeOver = async (file?: DriverDescriptor): Promise<Opened> => {
    const secrets = [{ id: 'k', file: key, image: null }];
    const how = { directory, journalDirectory: journals, secrets };
    const graph = await testGraph(file === undefined ? how : { ...how, file });
    return { graph, node: await graph.open({ path, format: 'qcow2', readOnly: false }) };
  };
  if (options.length === 0) {
    await qemuIo(path, ['write -P 1 0 64k'], ['-f', 'qcow2']);
    // One that is written now, and one for the repair.
    for (const cluster of [3, 5]) await clearCopied(path, cluster);
  }
  const { node } = await takeOver();
  for (const at of PLACES) await node.write(guestOffset(at), new Uint8Array(CLUSTER).fill(9));
  await alter(path, INCOMPATIBLE_AT, (byte) => byte | 1);
  const isEncrypted = options.includes('encrypt.format=luks');
  const check = isEncrypted
    ? [...secret, '--image-opts', `driver=qcow2,encrypt.key-secret=k,file.filename=${path}`]
    : [path];
  return { path, check, journals, takeOver };
};

const isTakenUp = async ({ path, check, journals, takeOver }: Left): Promise<void> => {
  const { graph, node } = await takeOver();
  for (const at of PLACES) {
    const found = new Uint8Array(CLUSTER);
    await node.read(guestOffset(at), found);
    assert.deepEqual(found, new Uint8Array(CLUSTER).fill(9), `at ${at}`);
  }
  await graph.close(node);
  assert.equal((await readFile(path)).readUInt8(INCOMPATIBLE_AT) & 1, 0);
  assert.deepEqual(await readdir(journals), []);
  await qemuImg(['check', '-q', ...check]);
};

for (const { what, options } of [
  { what: 'as it is', options: [] },
  { what: 'with refcounts that are brought up to date later', options: ['lazy_refcounts=on'] },
  { what: 'with a data file', options: ['data_file=disk.data'] },
  {
    what: 'encrypted',
    options: ['encrypt.format=luks', 'encrypt.key-secret=k', 'encrypt.iter-time=10'],
  },
]) {
  test(`a journal of an image that is marked dirty is taken up: ${what}`, async (t) => {
    await isTakenUp(await left(t, options));
  });
}

test('who dies while he takes up a journal, or repairs then, leaves both to the next', async (t) => {
  let steps = 0;
  for (let isEnded = false; !isEnded; steps++) {
    const image = await left(t);
    let before = 0;
    const file = delayedFile(image.path, {
      before: async (operation) => {
        if (operation === 'read' || before++ !== steps) return;
        throw new BlockError({ kind: 'io', message: 'the fault of this test' });
      },
    });
    isEnded = await image.takeOver(file).then(
      () => true,
      () => false,
    );
    await isTakenUp(image);
    t.mock.timers.reset();
  }
  assert.ok(steps > 6, `it ended after ${steps} steps`);
  t.diagnostic(`${steps} steps`);
});
