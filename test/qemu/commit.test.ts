/** `vdiskfs commit` beside `qemu-img commit`. */
import assert from 'node:assert/strict';
import { copyFile, mkdir, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { guestOffset } from '../../src/base/units.ts';
import { vdiskfs } from '../support/loaded-vdiskfs.ts';
import {
  assertClean,
  assertSameContent,
  contentSha256,
  qemuImg,
  qemuImgJson,
  qemuIo,
} from '../support/qemu-img.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';

const FILES = ['base', 'mid', 'top'];

/** base ← mid ← top: data, zeros over data, packed clusters, a base that is shorter. */
const makeChain = async (directory: string, baseFormat: string): Promise<void> => {
  const at = (name: string): string => join(directory, name);
  await mkdir(directory);
  await qemuImg(['create', '-q', '-f', baseFormat, at('base'), '4M']);
  await qemuIo(at('base'), ['write -P 1 0 2M', 'write -P 2 3M 1M'], ['-f', baseFormat]);
  await qemuImg(['create', '-q', '-f', 'qcow2', '-b', 'base', '-F', baseFormat, at('mid'), '5M']);
  await qemuIo(at('mid'), ['write -P 3 1M 100k', 'write -z 3200k 300k', 'write -c -P 9 4M 64k']);
  await qemuImg(['create', '-q', '-f', 'qcow2', '-b', 'mid', '-F', 'qcow2', at('top'), '6M']);
  await qemuIo(at('top'), ['write -P 4 500k 7k', 'write -z 1M 50k', 'write -P 5 5500k 300k']);
};

for (const baseFormat of ['raw', 'qcow2']) {
  test(`what is above comes into the base, and the overlay is emptied as qemu-img does it (${baseFormat})`, async (t) => {
    const root = await scratchDirectory(t);
    const [ours, theirs] = [join(root, 'ours'), join(root, 'theirs')];
    await makeChain(ours, baseFormat);
    await mkdir(theirs);
    for (const name of FILES) await copyFile(join(ours, name), join(theirs, name));
    const before = await contentSha256(join(ours, 'top'), join(root, 'before'));
    for (const name of ['top', 'mid']) {
      const done = await vdiskfs(['commit', join(ours, name)]);
      assert.equal(done.status, 0, done.stderr);
      assert.equal(done.stdout, 'Image committed.\n');
      await qemuImg(['commit', '-q', join(theirs, name)]);
      await assertClean(join(ours, name));
      await assertSameContent(join(ours, name), join(theirs, name));
      const map = (await qemuImgJson('map', [join(ours, name)])) as {
        depth: number;
        present: boolean;
      }[];
      assert.ok(
        map.every((run) => !run.present || run.depth > 0),
        'it has nothing itself any more',
      );
    }
    await qemuImg([
      'compare',
      '-f',
      baseFormat,
      '-F',
      baseFormat,
      join(ours, 'base'),
      join(theirs, 'base'),
    ]);
    if (baseFormat === 'qcow2') await assertClean(join(ours, 'base'));
    assert.equal(await contentSha256(join(ours, 'top'), join(root, 'after')), before);
  });
}

test('-b brings all layers into one further down, and -d leaves the overlay as it is', async (t) => {
  const root = await scratchDirectory(t);
  const chain = join(root, 'chain');
  await makeChain(chain, 'qcow2');
  const top = join(chain, 'top');
  const before = await contentSha256(top, join(root, 'before'));
  const kept = await vdiskfs(['commit', '-d', '-q', top]);
  assert.equal(kept.status, 0, kept.stderr);
  assert.equal(await contentSha256(join(chain, 'mid'), join(root, 'mid')), before);
  const deep = await vdiskfs(['commit', '-b', join(chain, 'base'), top]);
  assert.equal(deep.status, 0, deep.stderr);
  assert.equal(await contentSha256(join(chain, 'base'), join(root, 'base')), before);
  for (const name of FILES) await assertClean(join(chain, name));
  const wrong = await vdiskfs(['commit', '-b', '/nowhere', top]);
  assert.equal(wrong.status, 1);
  assert.match(wrong.stderr, /not in its backing chain/);
  const alone = await vdiskfs(['commit', join(chain, 'base')]);
  assert.equal(alone.status, 1);
  assert.match(alone.stderr, /has no backing image/);
});

test('an add-cow image commits into its backing file, and is empty then', async (t) => {
  const root = await scratchDirectory(t);
  const at = (name: string): string => join(root, name);
  await qemuImg(['create', '-q', '-f', 'qcow2', at('base.qcow2'), '4M']);
  await qemuIo(at('base.qcow2'), ['write -P 1 0 3M']);
  await writeFile(at('disk.img'), '');
  await truncate(at('disk.img'), 4 << 20);
  const names = 'image_file=disk.img,backing_file=base.qcow2,backing_fmt=qcow2';
  const made = await vdiskfs(['create', '-f', 'add-cow', '-o', names, at('disk.add-cow')]);
  assert.equal(made.status, 0, made.stderr);
  const graph = await testGraph({ directory: root });
  const overlay = { path: at('disk.add-cow'), format: 'add-cow', readOnly: false };
  const node = await graph.open(overlay);
  await node.write(guestOffset(100 * 1024), Buffer.alloc(1 << 20, 7));
  await graph.close(node);
  await qemuImg(['convert', '-O', 'raw', at('base.qcow2'), at('expected.raw')]);
  await qemuIo(at('expected.raw'), ['write -P 7 100k 1M'], ['-f', 'raw']);
  const committed = await vdiskfs(['commit', at('disk.add-cow')]);
  assert.equal(committed.status, 0, committed.stderr);
  await qemuImg(['compare', '-f', 'raw', '-F', 'qcow2', at('expected.raw'), at('base.qcow2')]);
  const compared = await vdiskfs(['compare', at('expected.raw'), at('disk.add-cow')]);
  assert.equal(compared.status, 0, compared.stdout + compared.stderr);
  const empty = await graph.open({ ...overlay, readOnly: true });
  const m = await empty.mapping(guestOffset(0), 4 << 20);
  assert.deepEqual(
    { kind: m.kind, lengthBytes: m.lengthBytes },
    { kind: 'unallocated', lengthBytes: 4 << 20 },
  );
  await graph.close(empty);
  await assertClean(at('base.qcow2'));
});
