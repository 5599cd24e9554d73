/** Files that a header names and that hold the guest's bytes: who opens them, who may, and when they are closed. */
import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { guestOffset } from '../../../src/base/units.ts';
import type { Graph } from '../../../src/block/graph.ts';
import type { Node } from '../../../src/block/node.ts';
import { scratchDirectory } from '../../support/scratch.ts';
import { stub, writeStub } from '../../support/stub-format.ts';
import { testGraph } from '../../support/test-graph.ts';

const graphIn = (directory: string): Promise<Graph> => testGraph({ directory, formats: [stub] });

const open = (graph: Graph, path: string, readOnly = false): Promise<Node> =>
  graph.open({ path, format: null, readOnly });

const isErrno =
  (errno: string) =>
  (error: unknown): boolean =>
    (error as { errno?: string }).errno === errno;

test('the guest of an image with a data file reads and writes that file', async (t) => {
  const directory = await scratchDirectory(t);
  const [image, data] = [join(directory, 'a.stub'), join(directory, 'a.data')];
  await writeStub(image, { dataFile: 'a.data' });
  await writeFile(data, Buffer.alloc(4096, 7));
  const graph = await graphIn(directory);
  const root = await open(graph, image);
  await root.write(guestOffset(100), Buffer.alloc(10, 9));
  const found = Buffer.alloc(4096);
  await root.read(guestOffset(0), found);
  const expected = Buffer.alloc(4096, 7).fill(9, 100, 110);
  assert.deepEqual(found, expected);
  assert.equal(graph.nodes.size, 2);
  await graph.close(root);
  assert.equal(graph.nodes.size, 0, 'the data file is closed with its image');
});

test('an image that is its own data file, or whose backing is its data file, does not open', async (t) => {
  const directory = await scratchDirectory(t);
  await writeStub(join(directory, 'self'), { dataFile: 'self' });
  await writeStub(join(directory, 'circle-a'), { dataFile: 'circle-b' });
  await writeStub(join(directory, 'circle-b'), { dataFile: 'circle-a' });
  await writeFile(join(directory, 'data'), Buffer.alloc(4096));
  await writeStub(join(directory, 'both'), { dataFile: 'data', backing: 'data' });
  await writeStub(join(directory, 'base'), { backing: 'data' });
  await writeStub(join(directory, 'below'), { dataFile: 'data', backing: 'base' });
  const graph = await graphIn(directory);
  for (const name of ['self', 'circle-a', 'both', 'below']) {
    for (const readOnly of [false, true]) {
      await assert.rejects(open(graph, join(directory, name), readOnly), isErrno('ELOOP'), name);
      assert.equal(graph.nodes.size, 0, `${name} leaves nothing open`);
    }
  }
});

test('a data file that is open for writing is open to nobody else', async (t) => {
  const directory = await scratchDirectory(t);
  const data = join(directory, 'data.raw');
  await writeFile(data, Buffer.alloc(4096));
  for (const name of ['a', 'b']) await writeStub(join(directory, name), { dataFile: 'data.raw' });
  const graph = await graphIn(directory);
  const first = await open(graph, join(directory, 'a'));
  await assert.rejects(open(graph, join(directory, 'b')), isErrno('EBUSY'));
  await assert.rejects(open(graph, join(directory, 'b'), true), isErrno('EBUSY'));
  await assert.rejects(open(graph, data, true), isErrno('EBUSY'));
  await graph.close(first);
  const reader = await open(graph, data, true);
  await assert.rejects(open(graph, join(directory, 'b')), isErrno('EBUSY'));
  const readers = [
    await open(graph, join(directory, 'a'), true),
    await open(graph, join(directory, 'b'), true),
  ];
  for (const node of [reader, ...readers]) await graph.close(node);
  await graph.close(await open(graph, join(directory, 'b')));
  assert.equal(graph.nodes.size, 0);
});

test('what opens a data file and fails gives it back', async (t) => {
  const directory = await scratchDirectory(t);
  await writeFile(join(directory, 'data.raw'), Buffer.alloc(4096));
  await writeStub(join(directory, 'broken'), { dataFile: 'data.raw', unopenable: true });
  await writeStub(join(directory, 'dangling'), { dataFile: 'data.raw', backing: 'gone' });
  const graph = await graphIn(directory);
  await assert.rejects(open(graph, join(directory, 'broken')), /its table is broken/);
  await assert.rejects(open(graph, join(directory, 'dangling')), isErrno('ENOENT'));
  assert.equal(graph.nodes.size, 0);
  await graph.close(await open(graph, join(directory, 'data.raw')));
});

test('a header cannot name a data file outside the allowed directories', async (t) => {
  const directory = await scratchDirectory(t);
  await writeStub(join(directory, 'a'), { dataFile: '/etc/hostname' });
  const graph = await graphIn(directory);
  await assert.rejects(open(graph, join(directory, 'a'), true), isErrno('EACCES'));
});
