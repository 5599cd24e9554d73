import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { walkPages } from '../../../../mount/kernel/page-walk.ts';
import { present } from '../../../../src/base/assert.ts';
import { guestOffset } from '../../../../src/base/units.ts';
import type { Node } from '../../../../src/block/node.ts';
import { COPY, READ, WRITE } from '../../../../src/translation/table-layout.ts';
import { qemuImg, qemuIo } from '../../../support/qemu-img.ts';
import { type Cleanup, scratchDirectory } from '../../../support/scratch.ts';
import { testGraph } from '../../../support/test-graph.ts';

const PAGE = 4096;
const PAGES = 16;

const openRaw = async (t: Cleanup): Promise<Node> => {
  const directory = await scratchDirectory(t);
  const path = join(directory, 'disk.raw');
  await writeFile(path, new Uint8Array(PAGES * PAGE));
  const graph = await testGraph({ directory });
  const node = await graph.open({ path, format: 'raw', readOnly: false });
  t.after(() => graph.close(node));
  return node;
};

/** A letter for each page: what workers may do with it. */
const permissions = (root: Node, writable = true, copies = 0): string =>
  walkPages({
    root,
    writable,
    copies,
    pageBytes: PAGE,
    firstPage: 0,
    pages: PAGES,
    fileOf: () => 1,
  })
    .map((run) => {
      const letter =
        { [READ]: 'r', [READ + COPY]: 'c', [READ + WRITE]: 'w' }[run.permissions] ?? '-';
      return letter.repeat(run.pages ?? 1);
    })
    .join('');

const write = (node: Node, page: number, bytes: number): Promise<void> =>
  node.write(guestOffset(page * PAGE), new Uint8Array(bytes));

test('workers may write a page once all of it is dirty in every bitmap that records', async (t) => {
  const node = await openRaw(t);
  assert.equal(permissions(node), 'wwwwwwwwwwwwwwww');
  const fine = await node.dirtyBitmaps.start(PAGE);
  assert.equal(permissions(node), 'rrrrrrrrrrrrrrrr');
  await write(node, 2, 1);
  await write(node, 5, 2 * PAGE + 1);
  assert.equal(permissions(node), 'rrwrrwwwrrrrrrrr');
  assert.equal(permissions(node, false), 'rrrrrrrrrrrrrrrr');
  const coarse = await node.dirtyBitmaps.start(4 * PAGE);
  assert.equal(permissions(node), 'rrrrrrrrrrrrrrrr', 'the new one is clean');
  await write(node, 5, 1);
  assert.equal(permissions(node), 'rrrrrwwwrrrrrrrr', 'page 4 is dirty in the coarse one alone');
  node.dirtyBitmaps.clear(fine, 6 * PAGE, PAGE);
  assert.equal(permissions(node), 'rrrrrwrwrrrrrrrr');
  node.dirtyBitmaps.drop(fine);
  assert.equal(permissions(node), 'rrrrwwwwrrrrrrrr');
  await node.dirtyBitmaps.disable(coarse);
  assert.equal(permissions(node), 'wwwwwwwwwwwwwwww');
});

test('workers may write no page that its file does not lend', async (t) => {
  const node = await openRaw(t);
  const { driver } = present(node.file, 'a raw image has a file');
  let asked = 0;
  driver.lend = (end) => {
    asked = end;
    return false;
  };
  assert.equal(permissions(node), 'rrrrrrrrrrrrrrrr');
  assert.equal(asked, PAGES * PAGE, 'up to the end of what is in one piece');
  asked = 0;
  assert.equal(permissions(node, false), 'rrrrrrrrrrrrrrrr');
  assert.equal(asked, 0, 'nothing is lent for reading');
});

test('a page of which only a part is dirty faults', async (t) => {
  const node = await openRaw(t);
  await node.dirtyBitmaps.start(512);
  await write(node, 3, PAGE - 1);
  await write(node, 4, PAGE - 512);
  assert.equal(permissions(node), 'rrrw-rrrrrrrrrrr');
});

test('a page that a write copies says so: below, and in a cluster that a snapshot has', async (t) => {
  const directory = await scratchDirectory(t);
  const [path, base] = [join(directory, 'top.qcow2'), join(directory, 'base.raw')];
  await writeFile(base, Buffer.alloc(12 * PAGE, 1));
  const options = ['-o', `cluster_size=${PAGE}`, '-b', base, '-F', 'raw'];
  await qemuImg(['create', '-q', '-f', 'qcow2', ...options, path, String(PAGES * PAGE)]);
  await qemuIo(path, [`write -q 0 ${2 * PAGE}`]);
  await qemuImg(['snapshot', '-c', 's', path]);
  await qemuIo(path, [`write -q ${PAGE} ${2 * PAGE}`]);
  const graph = await testGraph({ directory });
  const node = await graph.open({ path, format: 'qcow2', readOnly: false });
  t.after(() => graph.close(node));
  // The first write makes the image ready to be written.
  await write(node, 1, 1);
  assert.equal(permissions(node, true, COPY), 'cwwccccccccc----');
  assert.equal(permissions(node, true, 0), 'rwwrrrrrrrrr----');
});
